//! The part of Google's `profile.proto` that a CPU profile needs.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use prost::Message;

use super::{Names, Profile};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Proto {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub(super) label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
}

/// The whole message.
pub(super) fn encode(profile: &Profile) -> Vec<u8> {
    proto(profile).encode_to_vec()
}

fn proto(profile: &Profile) -> Proto {
    let mut strings = Names::default();
    // The first must be empty.
    let mut text = |text: &str| i64::from(strings.index(text));
    text("");
    let samples = ValueType {
        kind: text("samples"),
        unit: text("count"),
    };
    let cpu = ValueType {
        kind: text("cpu"),
        unit: text("nanoseconds"),
    };
    let thread = text("thread");
    let period = i64::from(1_000_000_000 / profile.frequency.max(1));
    let (mut locations, mut functions) = (Vec::new(), Vec::new());
    let mut ids: HashMap<u32, u64> = HashMap::new();
    let mut sample = Vec::with_capacity(profile.stacks.len());
    for (stack, &count) in &profile.stacks {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let Some((name, frames)) = stack.split_first() else {
            continue;
        };
        let of = frames.iter().rev().map(|&index| {
            *ids.entry(index).or_insert_with(|| {
                let id = functions.len() as u64 + 1;
                let name = text(profile.name(index));
                functions.push(Function {
                    id,
                    name,
                    system_name: name,
                });
                let line = vec![Line { function_id: id }];
                locations.push(Location { id, line });
                id
            })
        });
        let location_id = of.collect();
        let label = Label {
            key: thread,
            text: text(profile.name(*name)),
        };
        sample.push(Sample {
            location_id,
            value: vec![count, count.saturating_mul(period)],
            label: vec![label],
        });
    }
    let nanos = |time: std::time::Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    Proto {
        sample_type: vec![samples, cpu],
        sample,
        location: locations,
        function: functions,
        string_table: strings.all,
        time_nanos: profile.began.duration_since(UNIX_EPOCH).map_or(0, nanos),
        duration_nanos: nanos(profile.time),
        period_type: Some(cpu),
        period,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_stack_is_told_from_the_inside_out_with_its_time() {
        let stack: Box<[u32]> = [0, 1, 2].into();
        let profile = Profile {
            began: SystemTime::now(),
            time: Duration::from_secs(1),
            frequency: 100,
            lost: 0,
            stacks: [(stack, 3)].into(),
            names: ["runtime", "main", "f"].map(str::to_owned).to_vec(),
        };
        let proto = Proto::decode(&*encode(&profile)).unwrap();
        let text = |index: i64| &*proto.string_table[usize::try_from(index).unwrap()];
        assert_eq!(proto.string_table[0], "");
        let [sample] = &proto.sample[..] else {
            panic!("{proto:?}")
        };
        let names = sample.location_id.iter().map(|id| {
            let at = usize::try_from(id - 1).unwrap();
            let function = proto.location[at].line[0].function_id;
            text(proto.function[usize::try_from(function - 1).unwrap()].name)
        });
        assert_eq!(names.collect::<Vec<_>>(), ["f", "main"]);
        assert_eq!(sample.value, [3, 30_000_000]);
        assert_eq!(text(sample.label[0].text), "runtime");
        assert_eq!(proto.period, 10_000_000);
    }
}

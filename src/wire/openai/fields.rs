//! Fields that need more than a type: closed ranges, alternatives, llama-server's extras.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

use super::super::read::{Bounded, OneOrMany, Unserved, list};
use super::body::{Body, Lora};
use crate::generation::ranges::{
    self, MAX_ADAPTERS, MAX_BIASES, MAX_BREAKER_BYTES, MAX_BREAKERS, MAX_WINDOW,
};
use crate::generation::{
    AdapterRef, Class, Dry, Failure, Input, Mirostat, Sampling, UseAdapter, Xtc,
};

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 16;
/// Longest stop string, in bytes: text is held back while it could still become one.
pub const MAX_STOP_BYTES: usize = 512;
/// Most alternatives reported beside each token.
pub const MAX_TOP_LOGPROBS: i64 = 20;

/// Most prompts read from one body, before the bound on choices is applied.
pub(super) const MAX_PROMPTS: usize = 256;
/// `value` as `f32` if it is in `range`.
pub(super) fn real(
    name: &'static str,
    value: Option<f64>,
    range: RangeInclusive<f32>,
) -> Result<Option<f32>, Failure> {
    let Some(value) = value else { return Ok(None) };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding is fine, and what is too large becomes infinite: out of range"
    )]
    let value = value as f32;
    if range.contains(&value) {
        return Ok(Some(value));
    }
    let (least, most) = range.into_inner();
    Err(Failure::invalid(
        name,
        format!("{name} must be between {least} and {most}."),
    ))
}

/// `value` as `u32` if it is in `range`.
pub(super) fn whole(
    name: &'static str,
    value: Option<i64>,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, Failure> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(value) if range.contains(&value) => Ok(Some(value)),
        _ => {
            let (least, most) = range.into_inner();
            Err(Failure::invalid(
                name,
                format!("{name} must be between {least} and {most}."),
            ))
        }
    }
}

/// A look-back in tokens, where -1 means as far as possible.
fn look_back(name: &'static str, value: Option<i64>) -> Result<Option<u32>, Failure> {
    let most = i64::from(MAX_WINDOW);
    let value = value.map(|value| if value == -1 { most } else { value });
    whole(name, value, 0..=MAX_WINDOW)
}

/// A bound on new tokens, where -1 means none.
pub(super) fn max_tokens(body: &Body) -> Result<Option<u32>, Failure> {
    let given = [
        ("max_completion_tokens", body.max_completion_tokens),
        ("max_tokens", body.max_tokens),
        ("n_predict", body.n_predict),
    ];
    let mut bound = None;
    for (name, value) in given {
        let value = whole(name, value.filter(|&value| value != -1), 1..=u32::MAX)?;
        bound = bound.or(value);
    }
    Ok(bound)
}

/// The adapters of `lora`.
pub(super) fn adapters(
    lora: Option<Bounded<Lora, MAX_ADAPTERS>>,
) -> Result<Vec<UseAdapter>, Failure> {
    let list = lora.map_or(Vec::new(), |list| list.0);
    let adapter = |lora: Lora| {
        let adapter = match (lora.id, lora.name) {
            (None, Some(name)) => Some(AdapterRef::Name(name)),
            (Some(id), None) => u32::try_from(id).ok().map(AdapterRef::Id),
            _ => None,
        };
        Ok(UseAdapter {
            adapter: adapter.ok_or_else(|| {
                Failure::invalid(
                    "lora",
                    "Every entry of lora must have either the name of an adapter or its id.",
                )
            })?,
            scale: real("lora.scale", lora.scale, ranges::ADAPTER_SCALE)?,
        })
    };
    list.into_iter().map(adapter).collect()
}

/// `stop` as a list.
pub(super) fn stops(stop: Option<OneOrMany<String, MAX_STOPS>>) -> Result<Vec<String>, Failure> {
    let stops = match stop {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    };
    if stops
        .iter()
        .any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES)
    {
        return Err(Failure::invalid(
            "stop",
            format!("Every stop string must be 1 to {MAX_STOP_BYTES} bytes long."),
        ));
    }
    Ok(stops)
}

/// How tokens are chosen.
pub(super) fn sampling(body: &mut Body) -> Result<Sampling, Failure> {
    // Clients send 0 and -1 alike for "keep all".
    let top_k = body.top_k.map(|k| if k == -1 { 0 } else { k });
    Ok(Sampling {
        temperature: real("temperature", body.temperature, ranges::TEMPERATURE)?,
        top_k: whole("top_k", top_k, 0..=u32::MAX)?,
        top_p: real("top_p", body.top_p, ranges::PROBABILITY)?,
        min_p: real("min_p", body.min_p, ranges::PROBABILITY)?,
        typical_p: real("typical_p", body.typical_p, ranges::PROBABILITY)?,
        repeat_penalty: real(
            "repeat_penalty",
            body.repeat_penalty,
            ranges::REPEAT_PENALTY,
        )?,
        presence_penalty: real("presence_penalty", body.presence_penalty, ranges::PENALTY)?,
        frequency_penalty: real("frequency_penalty", body.frequency_penalty, ranges::PENALTY)?,
        repeat_last_n: look_back("repeat_last_n", body.repeat_last_n)?,
        dry: dry(body)?,
        xtc: xtc(body)?,
        mirostat: mirostat(body)?,
        logit_bias: body.logit_bias.take().map_or(Vec::new(), |bias| bias.0),
        seed: body.seed.take().and_then(|seed| seed.0),
        ignore_eos: body.ignore_eos,
    })
}

fn dry(body: &mut Body) -> Result<Option<Dry>, Failure> {
    let multiplier = real(
        "dry_multiplier",
        body.dry_multiplier,
        ranges::DRY_MULTIPLIER,
    )?;
    if multiplier == Some(0.0) {
        // Off. Clients that send every setting they have send the others along, whatever they are.
        return Ok(Some(Dry::default()));
    }
    let base = real("dry_base", body.dry_base, ranges::DRY_BASE)?;
    let allowed_length = whole(
        "dry_allowed_length",
        body.dry_allowed_length,
        0..=ranges::MAX_DRY_ALLOWED_LENGTH,
    )?;
    let penalty_last_n = look_back("dry_penalty_last_n", body.dry_penalty_last_n)?;
    let breakers = body.dry_sequence_breakers.take().map(|list| list.0);
    if breakers
        .iter()
        .flatten()
        .any(|text| text.is_empty() || text.len() > MAX_BREAKER_BYTES)
    {
        return Err(Failure::invalid(
            "dry_sequence_breakers",
            format!("Every sequence breaker must be 1 to {MAX_BREAKER_BYTES} bytes long."),
        ));
    }
    let given = multiplier.is_some()
        || base.is_some()
        || allowed_length.is_some()
        || penalty_last_n.is_some()
        || breakers.is_some();
    let usual = Dry::default();
    Ok(given.then(|| Dry {
        multiplier: multiplier.unwrap_or(usual.multiplier),
        base: base.unwrap_or(usual.base),
        allowed_length: allowed_length.unwrap_or(usual.allowed_length),
        penalty_last_n: penalty_last_n.unwrap_or(usual.penalty_last_n),
        sequence_breakers: breakers.unwrap_or(usual.sequence_breakers),
    }))
}

fn xtc(body: &Body) -> Result<Option<Xtc>, Failure> {
    let probability = real("xtc_probability", body.xtc_probability, ranges::PROBABILITY)?;
    let threshold = real("xtc_threshold", body.xtc_threshold, ranges::PROBABILITY)?;
    let given = probability.is_some() || threshold.is_some();
    Ok(given.then(|| Xtc {
        probability: probability.unwrap_or(0.0),
        threshold: threshold.unwrap_or(0.1),
    }))
}

fn mirostat(body: &Body) -> Result<Option<Mirostat>, Failure> {
    let tau = real("mirostat_tau", body.mirostat_tau, ranges::MIROSTAT_TAU)?;
    let eta = real("mirostat_eta", body.mirostat_eta, ranges::MIROSTAT_ETA)?;
    match body.mirostat {
        None | Some(0) => Ok(None),
        Some(2) => Ok(Some(Mirostat {
            tau: tau.unwrap_or(5.0),
            eta: eta.unwrap_or(0.1),
        })),
        Some(_) => Err(Failure::invalid(
            "mirostat",
            "mirostat must be 0 (off) or 2.",
        )),
    }
}

/// Refuses what this server does not do, by the name of the field that asks for it.
pub(super) fn unserved(body: &Body) -> Result<(), Failure> {
    let choice = body.tool_choice.as_ref();
    let without_tools = choice == Some(&Unserved::Word("none".to_owned()));
    let forced = match choice {
        Some(Unserved::Word(word)) => !matches!(word.as_str(), "none" | "auto"),
        Some(Unserved::Full) => true,
        _ => false,
    };
    let full = |field: &Option<Unserved>| matches!(field, Some(Unserved::Full | Unserved::Word(_)));
    let asked = [
        ("tools", full(&body.tools) && !without_tools),
        ("functions", full(&body.functions)),
        ("tool_choice", forced),
        ("audio", full(&body.audio)),
        ("web_search_options", body.web_search_options.is_some()),
        ("suffix", full(&body.suffix)),
        (
            "modalities",
            (body.modalities.as_ref()).is_some_and(|list| list.0.iter().any(|one| one != "text")),
        ),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some(&(name, _)) => Err(not_served(name.to_owned())),
        None => Ok(()),
    }
}

/// How urgent OpenAI's `service_tier` makes a request: `flex` takes what others leave, `priority` goes
/// first.
pub(super) fn class(tier: Option<&str>) -> Result<Class, Failure> {
    match tier {
        None | Some("auto" | "default") => Ok(Class::Normal),
        Some("flex") => Ok(Class::Background),
        Some("priority") => Ok(Class::Interactive),
        Some(_) => Err(Failure::invalid(
            "service_tier",
            "service_tier must be \"auto\", \"default\", \"flex\" or \"priority\".",
        )),
    }
}

/// The refusal of a feature that this server does not have.
pub(super) fn not_served(param: String) -> Failure {
    let message = format!("{param} is not supported by this server.");
    Failure::invalid(param, message).with_code("unsupported_parameter")
}

/// A list of dry's sequence breakers.
pub(super) type Breakers = Bounded<String, MAX_BREAKERS>;

/// `logprobs`: a flag in chat, a number in completions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Logprobs {
    Flag(bool),
    Count(i64),
}

impl<'de> Deserialize<'de> for Logprobs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Logprobs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a boolean or an integer")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Logprobs, E> {
                Ok(Logprobs::Flag(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Logprobs, E> {
                Ok(Logprobs::Count(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Logprobs, E> {
                Ok(Logprobs::Count(i64::try_from(value).unwrap_or(i64::MAX)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `seed`: any 64-bit integer, negative ones by their bits. -1 asks for a fresh one, as in llama-server.
#[derive(Debug)]
pub(super) struct Seed(Option<u64>);

impl<'de> Deserialize<'de> for Seed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Integer;
        impl Visitor<'_> for Integer {
            type Value = Seed;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a 64-bit integer")
            }
            fn visit_i64<E>(self, value: i64) -> Result<Seed, E> {
                Ok(Seed((value != -1).then_some(value.cast_unsigned())))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Seed, E> {
                Ok(Seed(Some(value)))
            }
        }
        deserializer.deserialize_i64(Integer)
    }
}

/// `logit_bias`: token ids as keys.
#[derive(Debug)]
pub(super) struct Biases(Vec<(u32, f32)>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Biases;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from token ids to numbers")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
                let mut biases = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let bias: f64 = map.next_value()?;
                    let token = key
                        .parse()
                        .map_err(|_| A::Error::custom("a key is not a token id"))?;
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "rounding is fine, and what is too large becomes infinite"
                    )]
                    let bias = bias as f32;
                    if !ranges::LOGIT_BIAS.contains(&bias) {
                        return Err(A::Error::custom("a bias is not between -100 and 100"));
                    }
                    if biases.len() == MAX_BIASES {
                        return Err(A::Error::custom(format_args!(
                            "more than {MAX_BIASES} entries"
                        )));
                    }
                    biases.push((token, bias));
                }
                let mut seen: Vec<u32> = biases.iter().map(|&(token, _)| token).collect();
                seen.sort_unstable();
                if seen.windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err(A::Error::custom("a token id is given twice"));
                }
                Ok(Biases(biases))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// `prompt` or `input`: a string, token ids, or a list of at most `N` of either.
#[derive(Debug)]
pub(super) struct Prompts<const N: usize>(pub(super) Vec<Input>);

/// The first element of a list decides what the others must be.
enum Element {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Element;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }
            fn visit_str<E>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, token: u64) -> Result<Element, E> {
                u32::try_from(token)
                    .map(Element::Token)
                    .map_err(|_| E::custom("a token id is too large"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                // Four bytes for at least two of the body: the body's cap bounds it.
                list(&mut seq, usize::MAX, Vec::new()).map(Element::Tokens)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Prompts<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<const N: usize>;
        impl<'de, const N: usize> Visitor<'de> for Any<N> {
            type Value = Prompts<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a string, or an array of strings, of token ids or of arrays of token ids",
                )
            }
            fn visit_str<E>(self, text: &str) -> Result<Prompts<N>, E> {
                Ok(Prompts(vec![Input::Text(text.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts<N>, A::Error> {
                Ok(Prompts(match seq.next_element()? {
                    None => Vec::new(),
                    Some(Element::Token(first)) => {
                        vec![Input::Tokens(list(&mut seq, usize::MAX, vec![first])?)]
                    }
                    Some(Element::Text(first)) => {
                        let texts = list(&mut seq, N, vec![first])?;
                        texts.into_iter().map(Input::Text).collect()
                    }
                    Some(Element::Tokens(first)) => {
                        let lists = list(&mut seq, N, vec![first])?;
                        lists.into_iter().map(Input::Tokens).collect()
                    }
                }))
            }
        }
        deserializer.deserialize_any(Any::<N>)
    }
}

//! Loading, layer by layer, and what is said when it fails.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const REFERENCE: &str = include_str!("../../config/sluicegate.toml");

fn sources(text: &str) -> Sources {
    Sources {
        file: Some(("test.toml".into(), text.to_owned())),
        ..Sources::default()
    }
}

fn load(text: &str) -> Config {
    Config::load(&sources(text)).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(sources: &Sources) -> String {
    Config::load(sources).unwrap_err().to_string()
}

fn variable(name: &str, value: &str) -> Sources {
    Sources {
        environment: vec![(name.to_owned(), value.to_owned())],
        ..Sources::default()
    }
}

fn flag(assignment: &str) -> Sources {
    Sources {
        flags: Flags {
            set: vec![assignment.to_owned()],
            ..Flags::default()
        },
        ..Sources::default()
    }
}

#[test]
fn behind_a_proxy_that_ends_tls_there_is_no_tls_listener() {
    let behind = "[server]\ntls_terminated = true\n";
    assert!(problems(&sources(behind)).contains("server.tls_terminated"));
    let without = format!("{behind}[tls]\nself_signed = false");
    assert!(load(&without).server.tls_terminated);
}

const KEY: &str = "[[auth.keys]]\nid = 'a'\nhash = \
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'\n";

#[test]
fn where_others_can_come_somebody_is_asked_or_it_is_said_that_nobody_is() {
    let public = "[server]\nlisten = '0.0.0.0:8080'\n";
    let text = problems(&sources(public));
    assert!(
        text.contains("server.listen: 0.0.0.0:8080 is not loopback"),
        "{text}"
    );
    assert!(
        text.contains("sluicegate key") && text.contains("auth.allow_anonymous"),
        "{text}"
    );
    load(&format!("{public}{KEY}"));
    load(&format!("{public}[auth]\nallow_anonymous = true"));
    load("[server]\nlisten = ['127.0.0.1:8080', '[::1]:8080']");
}

#[test]
fn a_tls_listener_that_wants_certificates_has_asked() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.display(), key.display());
    let public = format!("[tls]\nlisten = '0.0.0.0:8443'\ncert = '{cert}'\nkey = '{key}'\n");
    let text = problems(&sources(&public));
    assert!(
        text.contains("tls.listen: 0.0.0.0:8443 is not loopback"),
        "{text}"
    );
    load(&format!(
        "{public}client_ca = '{cert}'\nclient_auth = 'required'"
    ));
    let optional = problems(&sources(&format!("{public}client_ca = '{cert}'")));
    assert!(optional.contains("tls.listen"), "{optional}");
}

#[test]
fn operators_show_a_key_wherever_others_can_come() {
    let public = "[ops]\nlisten = '0.0.0.0:8081'\n[auth]\nallow_anonymous = true\n";
    let text = problems(&sources(public));
    assert!(
        text.contains("ops.listen: 0.0.0.0:8081 is not loopback"),
        "{text}"
    );
    load(&format!("{public}{KEY}"));
    let text = problems(&flag("ops.require_key=true"));
    assert!(text.contains("ops.require_key: there is no key"), "{text}");
}

#[test]
fn a_key_that_cannot_be_used_is_told_with_its_place() {
    let twice = problems(&sources(&format!("{KEY}{KEY}")));
    assert!(
        twice.contains("test.toml:5: auth.keys[1].id: there are two keys a"),
        "{twice}"
    );
    assert!(
        twice.contains("test.toml:6: auth.keys[1].hash: the key a has the same"),
        "{twice}"
    );
    let scope = problems(&sources(&format!("{KEY}scopes = ['admin']")));
    assert!(
        scope.contains("test.toml:4: auth.keys[0].scopes: "),
        "{scope}"
    );
    assert!(scope.contains("there is no scope \"admin\""), "{scope}");
    let jwt = problems(&sources("[auth.jwt]\njwks_file = '/no/such/file'"));
    assert!(
        jwt.contains("test.toml:2: auth.jwt.jwks_file: cannot read"),
        "{jwt}"
    );
    assert!(
        jwt.contains("auth.jwt.audience: must name this service"),
        "{jwt}"
    );
    let none = problems(&sources("[auth]\nkeys_file = '/no/such/file'"));
    assert!(
        none.contains("test.toml:2: auth.keys_file: cannot read /no/such/file"),
        "{none}"
    );
}

#[test]
fn a_key_in_the_place_of_its_hash_is_not_repeated() {
    let key = "sgk_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";
    let text = problems(&sources(&format!(
        "[[auth.keys]]\nid = 'a'\nhash = '{key}'"
    )));
    assert!(text.contains("auth.keys[0].hash: this is a key"), "{text}");
    assert!(!text.contains(key), "{text}");
    let set = format!("auth.keys=[{{id='a', hash='{key}'}}]");
    let text = problems(&flag(&set));
    assert!(
        text.contains("this is a key") && !text.contains(key),
        "{text}"
    );
}

#[test]
fn secrets_in_the_wrong_place_are_not_repeated() {
    let key = "sgk_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";
    for text in [
        format!("{KEY}scopes = '{key}'"),
        format!("{KEY}owner = '{key}'"),
        format!("{KEY}{key} = 1"),
        format!("[[auth.keys]]\nid = '{key}'\nhash = 'x'"),
        format!("[auth]\nkeys = '{key}'"),
    ] {
        let told = problems(&sources(&text));
        assert!(!told.contains("abcdefghij"), "{told}");
    }
    for url in ["rediss://me:s3cret@host", "redis://me:s3/cret@host:port"] {
        let told = problems(&sources(&format!("[limits.redis]\nurl = '{url}'")));
        assert!(
            told.contains("limits.redis.url") && !told.contains("cret"),
            "{told}"
        );
        let told = problems(&flag(&format!("limits.redis.url={url}")));
        assert!(!told.contains("cret"), "{told}");
    }
}

#[test]
fn nothing_gives_the_defaults() {
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config, Config::default());
    assert!(config.models.is_empty());
}

#[test]
fn later_sources_win() {
    let mut all = sources("[drain]\ntimeout = '1s'\nlag = '2s'\n[stream]\nring = 8");
    let lag = |sources: &Sources| Config::load(sources).unwrap().drain.lag;
    assert_eq!(lag(&all), Duration::from_secs(2));
    all.environment = vec![("SLUICEGATE_DRAIN__LAG".into(), "3s".into())];
    assert_eq!(lag(&all), Duration::from_secs(3));
    all.flags.set = vec!["drain.lag = '4s'".into(), "drain.lag=5s".into()];
    assert_eq!(lag(&all), Duration::from_secs(5));
    let config = Config::load(&all).unwrap();
    assert_eq!(config.drain.timeout, Duration::from_secs(1));
    assert_eq!(config.stream.ring, 8);
}

#[test]
fn values_outside_a_file_are_toml_or_text() {
    let config = Config::load(&variable(
        "SLUICEGATE_SERVER__LISTEN",
        "['127.0.0.1:0', '[::1]:0']",
    ));
    assert_eq!(config.unwrap().server.listen.len(), 2);
    let config = Config::load(&flag("server.max_body_bytes=16MiB")).unwrap();
    assert_eq!(config.server.max_body_bytes, 16 << 20);
    let config = Config::load(&flag("server.max_body_bytes=4096")).unwrap();
    assert_eq!(config.server.max_body_bytes, 4096);
    let config = Config::load(&flag("deadlines.total=off")).unwrap();
    assert_eq!(config.deadlines.total, None);
}

#[test]
fn models_are_reached_by_number() {
    let mut all = sources("[[models]]\nname = 'a'\nengine = 'scripted'");
    all.environment = vec![
        ("SLUICEGATE_MODELS__0__SCRIPT__TOKENS".into(), "7".into()),
        ("SLUICEGATE_MODELS__1__NAME".into(), "b".into()),
        ("SLUICEGATE_MODELS__1__ENGINE".into(), "scripted".into()),
    ];
    let config = Config::load(&all).unwrap();
    assert_eq!(config.models.len(), 2);
    let Backing::Scripted(script) = &config.models[0].backing else {
        panic!("not scripted");
    };
    assert_eq!(script.tokens.get(), 7);
    assert!(problems(&flag("models.3.name=x")).contains("no entry 3"));
    let whole = variable("SLUICEGATE_MODELS", "[{name='w', engine='scripted'}]");
    assert_eq!(Config::load(&whole).unwrap().models.len(), 1);
}

#[test]
fn the_model_flag_adds_and_replaces() {
    let mut all = sources(
        "[[models]]\nname = 'a'\nengine = 'scripted'\n[[models]]\nname = 'b'\nengine = 'scripted'",
    );
    all.flags.model = vec!["a=Cargo.toml".into(), "org/c=Cargo.toml".into()];
    let names: Vec<String> = Config::load(&all)
        .unwrap()
        .models
        .iter()
        .map(|model| model.name.to_string())
        .collect();
    assert_eq!(names, ["b", "a", "org/c"]);
    all.flags.model = vec!["justaname".into(), "x=/no/such/file".into()];
    let text = problems(&all);
    assert_eq!(text, "--model justaname: write NAME=PATH");
    all.flags.model.remove(0);
    let text = problems(&all);
    assert!(
        text.starts_with("--model x=/no/such/file: models[2].path: cannot open"),
        "{text}"
    );
}

#[test]
fn the_listen_flag_replaces() {
    let mut all = sources("[server]\nlisten = '127.0.0.1:1'");
    all.flags.listen = vec!["127.0.0.1:2".parse().unwrap()];
    assert_eq!(Config::load(&all).unwrap().server.listen[0].port(), 2);
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest_key() {
    let text = problems(&sources("# one\n\n[server]\n  lisen = '127.0.0.1:1'\n"));
    assert_eq!(
        text,
        "test.toml:4: unknown key server.lisen; did you mean server.listen?\n    \
         4 | lisen = '127.0.0.1:1'"
    );
    assert!(problems(&sources("[sever]\nlisten = 1")).contains("did you mean server?"));
    assert!(
        problems(&sources("[server]\nstall_timeout = '1s'"))
            .contains("unknown key server.stall_timeout; did you mean stream.stall_timeout?")
    );
    assert!(problems(&sources("[server]\nxyzzy = 1")).contains("unknown key server.xyzzy\n"));
    let nested = "[[models]]\nname = 'a'\nengine = 'scripted'\n[models.script]\ntoken = 1";
    assert!(
        problems(&sources(nested))
            .contains("unknown key models[0].script.token; did you mean models[0].script.tokens?")
    );
}

#[test]
fn problems_outside_a_file_name_their_source() {
    let text = problems(&variable("SLUICEGATE_STREAM__RNG", "64"));
    assert_eq!(
        text,
        "environment SLUICEGATE_STREAM__RNG: unknown key stream.rng; did you mean stream.ring?"
    );
    let text = problems(&variable("SLUICEGATE_STREEM__RING", "64"));
    assert!(
        text.starts_with("environment SLUICEGATE_STREEM__RING: unknown key streem"),
        "{text}"
    );
    let text = problems(&flag("stream.ring=65"));
    assert!(
        text.starts_with("--set stream.ring=65: stream.ring: 65"),
        "{text}"
    );
    assert!(problems(&flag("stream.ring")).contains("SECTION.KEY=VALUE"));
    assert!(problems(&flag("stream..ring=1")).contains("empty"));
    let text = problems(&variable("SLUICEGATE_SERVER_LISTEN", "x"));
    assert!(text.contains("SLUICEGATE_SERVER__LISTEN"), "{text}");
}

#[test]
fn other_peoples_variables_are_left_alone() {
    for name in [
        "SLUICEGATE_PORT",
        "SLUICEGATE_SERVICE_HOST",
        "SLUICEGATE_OPS_PORT_8081_TCP",
        "PATH",
        "SLUICEGATE_",
    ] {
        assert!(Config::load(&variable(name, "tcp://1")).is_ok(), "{name}");
    }
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_file() {
    let text = problems(&sources(
        "[server]\n\
         listen = 'localhost'\n\
         max_connections = 0\n\
         header_timeout = '0s'\n\
         [stream]\n\
         ring = 'big'\n\
         [[models]]\n\
         name = 'a b'\n\
         engine = 'scripted'\n\
         [[models]]\n\
         name = 'ok'\n\
         path = 'm.gguf'\n\
         kv_type_k = 'q8'\n",
    ));
    let lines: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("test.toml:"))
        .map(|line| line.split(':').next().unwrap())
        .collect();
    assert_eq!(lines, ["2", "3", "4", "6", "8", "13"], "{text}");
    assert!(
        text.contains("models[1].kv_type_k: \"q8\" is not one of"),
        "{text}"
    );
    assert!(text.contains("did you mean \"q8_0\"?"), "{text}");
}

#[test]
fn wrong_syntax_names_every_line() {
    let text = problems(&sources("[server\nlisten = '127.0.0.1:1'\nx = = 2\n"));
    assert!(text.contains("test.toml:1:"), "{text}");
    assert!(text.contains("test.toml:3:"), "{text}");
    let text = problems(&sources("[drain]\nlag = '1s'\nlag = '2s'"));
    assert!(text.contains("test.toml:3:"), "{text}");
}

#[test]
fn settings_are_checked_against_each_other() {
    let text = problems(&sources("[ops]\nlisten = '127.0.0.1:8080'"));
    assert!(text.starts_with("test.toml:2: ops.listen: "), "{text}");
    assert!(problems(&sources("[server]\nlisten = '0.0.0.0:8081'")).contains("ops.listen"));
    let free = "[server]\nlisten = '127.0.0.1:0'\n[ops]\nlisten = '127.0.0.1:0'";
    assert!(Config::load(&sources(free)).is_ok());
    let twice = "[[models]]\nname = 'a'\nengine = 'scripted'\n".repeat(2);
    assert!(problems(&sources(&twice)).contains("test.toml:5: models[1].name"));
    let taken = "[[models]]\nname = 'unknown'\nengine = 'scripted'\n";
    assert!(problems(&sources(taken)).contains("test.toml:2: models[0].name"));
    let missing = "[[models]]\nname = 'a'\npath = 'no/such.gguf'";
    assert!(problems(&sources(missing)).contains("test.toml:3: models[0].path: cannot open"));
}

#[test]
fn bounds_hold() {
    for bad in [
        "[server]\nmax_header_bytes = '4KiB'",
        "[server]\nmax_header_bytes = '2MiB'",
        "[server]\nmax_body_bytes = -1",
        "[server]\nmax_body_bytes = '8 bananas'",
        "[server]\nmax_json_depth = 128",
        "[server]\nlisten = []",
        "[server]\nlisten = [1]",
        "[server]\nlisten = {a = 1}",
        "[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']",
        "[server]\nidle_timeout = 75",
        "[server]\nidle_timeout = 1979-05-27",
        "[stream]\nring = 4",
        "[stream]\nring = 65",
        "[deadlines]\nqueue = '0s'",
        "[deadlines]\nqueue = 'never'",
        "[limits]\nmax_streams = 0",
        "[limits]\nmax_streams = 99999999999999999999",
        "[telemetry]\nlog = 'infoo'",
        "[telemetry]\nformat = 'xml'",
        "[telemetry.metrics]\nmax_series = 0",
        "[telemetry.metrics]\ncache = '61s'",
        "[telemetry.metrics]\nanomaly_factor = 1.0",
        "[telemetry.metrics]\nanomaly_factor = nan",
        "[telemetry.metrics]\nanomaly_factor = inf",
        "[engine]\nnuma = true",
        "server = 5",
        "models = 5",
        "[models]\nname = 'a'",
        "[[server]]\nlisten = '127.0.0.1:1'",
    ] {
        let text = problems(&sources(bad));
        assert!(text.starts_with("test.toml:"), "{bad}: {text}");
    }
    assert_eq!(
        load("[server]\nsend_buffer = '64KiB'").server.send_buffer,
        Some(65536)
    );
}

#[test]
fn a_byte_order_mark_is_no_problem() {
    assert_eq!(load("\u{feff}[stream]\nring = 8").stream.ring, 8);
    let text = problems(&sources("\u{feff}[stream]\nrin = 8"));
    assert!(
        text.starts_with("test.toml:2: unknown key stream.rin;"),
        "{text}"
    );
}

#[test]
fn the_reference_file_is_the_defaults() {
    assert_eq!(load(REFERENCE), Config::default());
}

#[test]
fn the_example_of_limits_is_a_valid_file() {
    let limits = load(include_str!("../../config/limits.toml")).limits;
    assert_eq!(limits.classes.len(), 3);
    assert_eq!(limits.classes["product"].models.len(), 1);
    assert!(limits.organizations.contains_key("acme") && limits.models.contains_key("demo"));
}

#[test]
fn limits_of_models_that_are_not_served_are_told_with_their_place() {
    let text = "[limits.models.gpt]\nstreams = 1\n[limits.classes.a]\ntoken_burst = 1";
    let found = problems(&sources(text));
    assert!(
        found.contains("test.toml:1") && found.contains("limits.models.gpt"),
        "{found}"
    );
    assert!(
        found.contains("test.toml:4") && found.contains("limits.classes.a.token_burst"),
        "{found}"
    );
}

/// A commented setting is `#key = …` or `#[…]`; prose begins with `# `.
#[test]
fn the_reference_file_mentions_every_key_with_a_line_of_why() {
    let text: String = REFERENCE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
            _ => line,
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut root =
        tree::parse_file("reference", &text).unwrap_or_else(|errors| panic!("{errors:?}"));
    let mut mentioned = BTreeSet::new();
    collect(&root, "", &mut mentioned);
    let mut known: BTreeSet<String> = keys::all().iter().cloned().collect();
    // Known only to say what took its place.
    assert!(known.remove("models.prefill_chunk"));
    assert!(known.contains("server.listen") && known.contains("models.script.fail_kind"));
    assert_eq!(
        known.difference(&mentioned).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    read::read::<Config>(&mut root).unwrap_or_else(|errors| panic!("{errors:?}"));
}

fn collect(node: &tree::Node, path: &str, found: &mut BTreeSet<String>) {
    match &node.value {
        tree::Value::Table(entries) => {
            for (key, node) in entries {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(node, &path, found);
                found.insert(path);
            }
        }
        tree::Value::Array(list) => list.iter().for_each(|(_, node)| collect(node, path, found)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*", value in "\\PC*", path in "[a-z0-9.]{0,24}") {
        let mut all = sources(&text);
        all.flags.set = vec![format!("{path}={value}")];
        let _ = Config::load(&all);
    }

    #[test]
    fn almost_toml_never_panics(lines in proptest::collection::vec(
        "(\\[{1,2}(server|models|stream|models.script|models.sampling)\\]{1,2}|(name|path|ring|listen|engine|tokens|dry) ?= ?('[a-z.]{0,8}'|-?[0-9]{1,20}|\\[.{0,5}\\]|\\{ring = 1\\}))", 0..12)) {
        let _ = Config::load(&sources(&lines.join("\n")));
    }
}

mod reloading {
    use super::*;

    fn loaded(text: &str) -> Loaded {
        Loaded::load(&sources(text)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// What is told: `key: from -> to`, first what is live.
    fn told(from: &Loaded, to: &str) -> (Changed, Vec<String>, Vec<String>) {
        let changed = from.changed(&loaded(to)).unwrap();
        let text = |value: &Option<serde_json::Value>| {
            value.as_ref().map_or("-".to_owned(), ToString::to_string)
        };
        let lines = |changes: &[crate::control::reload::Change]| {
            let line = changes.iter().map(|change| {
                let (from, to) = (text(&change.from), text(&change.to));
                format!("{}: {from} -> {to}", change.key)
            });
            line.collect()
        };
        let (live, restart) = (lines(&changed.live), lines(&changed.restart));
        (changed, live, restart)
    }

    #[test]
    fn what_is_live_changes_and_the_rest_waits() {
        let first = loaded("[drain]\ntimeout = '9s'\n[server]\nmax_connections = 5\n");
        let (changed, live, restart) = told(
            &first,
            "[deadlines]\ntotal = '1m'\n[server]\nmax_connections = 6\n\
             [limits.anonymous]\nstreams = 3\n",
        );
        assert_eq!(
            live,
            [
                r#"deadlines.total: "30m" -> "1m""#,
                r#"drain.timeout: "9s" -> "25s""#,
                "limits.anonymous.streams: - -> 3",
            ]
        );
        assert_eq!(restart, ["server.max_connections: 5 -> 6"]);
        let runs = changed.runs;
        assert_eq!(runs.config.deadlines.total, Some(Duration::from_mins(1)));
        assert_eq!(runs.config.drain, Config::default().drain);
        assert_eq!(runs.config.server.max_connections.get(), 5);
        // The same once more: what waits is told again, what holds is not.
        let (changed, live, restart) = told(
            &runs,
            "[deadlines]\ntotal = '1m'\n[server]\nmax_connections = 6\n\
             [limits.anonymous]\nstreams = 3\n",
        );
        assert_eq!((live.len(), restart.len()), (0, 1));
        assert_eq!(changed.runs.config, runs.config);
    }

    #[test]
    fn another_spelling_is_no_change() {
        let first = loaded("[deadlines]\ntotal = '60s'\n[server]\nlisten = '127.0.0.1:9'\n");
        let text =
            "[deadlines]\ntotal = '1m'\n[server]\nlisten = ['127.0.0.1:9']\nnodelay = true\n";
        let (changed, live, restart) = told(&first, text);
        assert_eq!((live, restart), (vec![], vec![]));
        assert_eq!(changed.runs.config, first.config);
    }

    #[test]
    fn secrets_are_not_told() {
        let key = |last: char| {
            let zeros = "0".repeat(63);
            format!("[[auth.keys]]\nid = 'a'\nhash = 'sha256:{zeros}{last}'\n")
        };
        let url = |password: &str| format!("[limits.redis]\nurl = 'redis://u:{password}@h:1/0'\n");
        let first = loaded(&(key('1') + &url("one")));
        let (_, live, restart) = told(&first, &(key('2') + &url("two")));
        assert_eq!(live, [r#"auth.keys[0].hash: "(changed)" -> "(changed)""#]);
        assert_eq!(restart, [r#"limits.redis.url: "(changed)" -> "(changed)""#]);
    }

    #[test]
    fn lists_of_tables_are_told_entry_by_entry() {
        let model = |name| format!("[[models]]\nname = '{name}'\nengine = 'scripted'\n");
        let first = loaded(&model("a"));
        let (changed, live, restart) = told(&first, &(model("a") + &model("b")));
        assert_eq!(live, Vec::<String>::new());
        assert_eq!(
            restart,
            [
                r#"models[1].engine: - -> "scripted""#,
                r#"models[1].name: - -> "b""#
            ]
        );
        assert_eq!(changed.runs.config.models.len(), 1);
        // Limits may come before the model that they are for.
        let limits = "[limits.models.b]\nstreams = 1\n";
        let (changed, live, _) = told(&first, &(model("a") + &model("b") + limits));
        assert_eq!(live, ["limits.models.b.streams: - -> 1"]);
        assert!(changed.runs.config.limits.models.contains_key("b"));
    }

    #[test]
    fn nobody_is_let_in_by_half_of_a_configuration() {
        let key = format!(
            "[[auth.keys]]\nid = 'a'\nhash = 'sha256:{}1'\n",
            "0".repeat(63)
        );
        let first = loaded(&format!("{key}[server]\nlisten = '0.0.0.0:8080'\n"));
        // Fine after a restart, and an open door before.
        let (changed, live, restart) = told(&first, "[drain]\nlag = '2s'\n");
        assert_eq!(live, Vec::<String>::new());
        assert_eq!(restart.len(), 4, "{restart:?}");
        assert_eq!(changed.runs.config, first.config);
    }
}

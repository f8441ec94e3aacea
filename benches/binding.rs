//! What token binding costs a connection and a request.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rustls::KeyLog as _;
use sluicegate::auth::binding::{Secret, derive};
use sluicegate::auth::config::Auth;
use sluicegate::auth::replay::{Replay, Scope};
use sluicegate::auth::token::Tokens;
use sluicegate::auth::{Arrival, Gate, Key, Session, Signed};
use sluicegate::generation::Caller;

const TODAY: u64 = 1_700_000_000;
const BODY: &[u8] =
    br#"{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]}"#;

fn key() -> Option<Key> {
    derive(
        Secret::EarlyTraffic(black_box(&[7; 32])),
        black_box(&[9; 32]),
    )
}

fn request<'a>(id: &'a str, token: &'a str) -> Signed<'a> {
    Signed {
        id,
        method: "POST",
        path: "/v1/chat/completions",
        token,
        body: BODY,
    }
}

fn server() -> Option<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).ok()?;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .ok()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .ok()
}

fn parts(c: &mut Criterion) {
    let Some(key_of_one) = key() else { return };
    let request = request(
        "4be1ba3a76c54b1a",
        "sgb1.0123456789012345678901234567890123456789",
    );
    let proof = key_of_one.prove(&request.message());
    let mut group = c.benchmark_group("binding");
    group.bench_function("derive", |b| b.iter(key));
    group.bench_function("prove", |b| {
        b.iter(|| key_of_one.prove(&black_box(request).message()));
    });
    group.bench_function("verify", |b| {
        b.iter(|| key_of_one.verify(&black_box(request).message(), &proof));
    });
    group.bench_function("replay_record", |b| {
        let replay = Replay::new(1 << 20, Duration::from_micros(500));
        let mut id = 0_u64;
        b.iter(|| {
            id += 1;
            replay.record(Scope::Identity("alice"), &id.to_string(), Instant::now())
        });
    });
    group.finish();
}

fn whole(c: &mut Criterion) {
    let (Ok(gate), Some(base)) = (Gate::new(&Auth::default(), TODAY), server()) else {
        return;
    };
    let Ok(session) = gate.session() else { return };
    session.log("CLIENT_EARLY_TRAFFIC_SECRET", &[1; 32], &[7; 32]);
    let caller = Caller {
        identity: Some("alice".into()),
        ..Caller::default()
    };
    let Ok((token, _)) = gate.bind(&session, &caller, TODAY) else {
        return;
    };
    let request = request("4be1ba3a76c54b1a", &token);
    let proof = proof(&session, &request);
    let late = Arrival {
        session: Some(&session),
        early: false,
        forwarded: false,
        live_only: false,
        room: true,
        proof: Some(&proof),
        now: Instant::now(),
        today: TODAY,
    };
    let mut group = c.benchmark_group("gate");
    group.bench_function("session", |b| b.iter(|| gate.session()));
    group.bench_function("config_clone", |b| {
        b.iter_batched(|| (), |()| session.apply(&base), BatchSize::SmallInput);
    });
    group.bench_function("token_mint", |b| {
        b.iter(|| gate.bind(&session, &caller, TODAY));
    });
    group.bench_function("token_open", |b| {
        let tokens = Tokens::new(Duration::from_hours(1), TODAY).ok();
        let minted = tokens.as_ref().and_then(|tokens| {
            let minted = tokens.mint(&caller, session.lineage(), TODAY);
            Some((tokens, minted.ok()?.0))
        });
        let Some((tokens, token)) = minted else {
            return;
        };
        b.iter(|| tokens.open(&token, TODAY));
    });
    group.bench_function("judge_plain", |b| {
        let plain = Arrival {
            proof: None,
            ..late
        };
        let request = Signed {
            token: "",
            ..request
        };
        b.iter(|| gate.judge(&plain, &request, None));
    });
    group.bench_function("judge_bound", |b| {
        b.iter(|| gate.judge(&late, &request, None));
    });
    group.finish();
}

fn proof(session: &Session, request: &Signed<'_>) -> String {
    let key = session.secrets().early();
    key.map_or_else(String::new, |key| key.prove(&request.message()).to_string())
}

fn config() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = benches; config = config(); targets = parts, whole }
criterion_main!(benches);

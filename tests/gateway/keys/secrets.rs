//! No credential is written anywhere: not to the log at its most talkative, not to the metrics, not into an
//! answer.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use ring::hmac;
use sluicegate::auth::keys::KeyHash;
use tempfile::TempDir;

use super::With;
use crate::support::{Ask, Asked, BIND, CHAT, Protocol, Quic, Raw, Visitor, chat_body, within};

/// Every secret of this test has it in it, but for those that are sealed or signed.
const MARK: &str = "canary";

const GOOD: &str = "sgk_canary-good-0123456789abcdefghijklmnopqrst";
const OPERATOR: &str = "sgk_canary-operator-0123456789abcdefghijklm";

/// `sluicegate serve` with everything logged.
struct Serving {
    child: Child,
    dir: TempDir,
    public: SocketAddr,
    secure: SocketAddr,
    ops: SocketAddr,
}

impl Serving {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, format!("{MARK}-secret-of-no-less-than-32-bytes")).unwrap();
        let (good, operator) = (KeyHash::of(GOOD), KeyHash::of(OPERATOR));
        let keys = format!(
            "[[keys]]\nid = 'good'\nhash = '{good}'\n\
             [[keys]]\nid = 'operator'\nhash = '{operator}'\nscopes = ['ops:read']\n"
        );
        std::fs::write(dir.path().join("keys.toml"), keys).unwrap();
        let config = format!(
            "[server]\nlisten = '127.0.0.1:0'\nstate_dir = '{}'\n[tls]\nlisten = '127.0.0.1:0'\n\
             [ops]\nlisten = '127.0.0.1:0'\nrequire_key = true\n[telemetry]\nlog = 'trace'\n\
             [auth]\nkeys_file = '{}'\n[auth.jwt]\naudience = 'any'\n[[auth.jwt.keys]]\n\
             id = 'one'\nalgorithm = 'HS256'\nsecret_file = '{}'\n\
             [[models]]\nname = 'scripted'\nengine = 'scripted'\n",
            dir.path().display(),
            path("keys.toml"),
            secret.display(),
        );
        std::fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICEGATE_")) {
            command.env_remove(name);
        }
        command
            .args(["serve", "--config", &path("config.toml")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("log")).unwrap());
        let started = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let addresses: Vec<_> = lines.take(3).map(|line| address(&line.unwrap())).collect();
            let [public, secure, ops] = addresses[..] else {
                panic!("{addresses:?}: {}", log(dir.path()));
            };
            Self {
                child,
                dir,
                public,
                secure,
                ops,
            }
        });
        within(started).await.unwrap()
    }

    fn ask(&self, path: &str, body: &str) -> Ask {
        let ask = Ask::new(self.public, "POST", path, body.as_bytes().to_vec());
        ask.header("content-type", "application/json")
    }

    /// Ends in good order; everything that was logged.
    async fn end(mut self) -> String {
        let kill = format!("kill -TERM {}", self.child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        let ended = tokio::task::spawn_blocking(move || {
            self.child.wait().unwrap();
            log(self.dir.path())
        });
        within(ended).await.unwrap()
    }
}

fn address(line: &str) -> SocketAddr {
    let (_, rest) = line.split_once("://").expect("an address");
    let address = rest.split('/').next().expect("an address");
    address.parse().expect("an address")
}

fn log(dir: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(dir.join("log")).unwrap()).into_owned()
}

/// A JWT for `sub`, good or not.
fn jwt(sub: &str, secret: &str) -> String {
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let exp = jiff::Timestamp::now().as_second() + 600;
    let head = part(r#"{"alg":"HS256","typ":"JWT"}"#);
    let signed = format!(
        "{head}.{}",
        part(&format!(r#"{{"sub":"{sub}","exp":{exp}}}"#))
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = BASE64_URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// What must be found nowhere: of a text of several parts, each of them.
fn add(secrets: &mut Vec<String>, text: &str) {
    let parts = text.split(['.', ' ']).filter(|part| part.len() >= 12);
    // The head of a JWT is the same for all and says nothing.
    let parts = parts.filter(|part| !part.starts_with("eyJhbGci"));
    secrets.extend(parts.map(|part| part[..part.len().min(24)].to_owned()));
}

/// What is looked for, and where.
struct Search {
    secrets: Vec<String>,
    said: Vec<String>,
    /// What is shown as `Authorization`, good and bad.
    bearers: Vec<String>,
    jwt: String,
    chat: String,
}

impl Search {
    fn new() -> Self {
        let jwt = jwt(
            "somebody",
            &format!("{MARK}-secret-of-no-less-than-32-bytes"),
        );
        let other = self::jwt("other", "another secret of no less than 32 bytes");
        let bearers = vec![
            format!("Bearer {GOOD}"),
            format!("Bearer sgk_{MARK}-wrong"),
            format!("Bearer {MARK}"),
            format!("Bearer {MARK} {MARK} {MARK}"),
            format!("Basic {MARK}"),
            MARK.to_owned(),
            format!("Bearer {MARK}-\u{e9}"),
            format!("Bearer eyJ{MARK}.{MARK}.{MARK}"),
            format!("Bearer sgb1.{MARK}"),
            format!("Bearer {jwt}"),
            format!("Bearer {other}"),
        ];
        let mut secrets = vec![MARK.to_owned()];
        for bearer in &bearers {
            add(&mut secrets, bearer);
        }
        Self {
            secrets,
            said: Vec::new(),
            bearers,
            jwt,
            chat: chat_body("scripted?tokens=2", "Hi", ""),
        }
    }

    async fn over_http1(&mut self, serving: &Serving) {
        let chat = &self.chat;
        let rpc = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"chat","params":{chat}}}"#);
        let bodies = [
            (CHAT, &**chat),
            (CHAT, "{"),
            ("/rpc", &rpc),
            (BIND, "{}"),
            ("/no", ""),
        ];
        let mut statuses = Vec::new();
        for bearer in &self.bearers {
            let key = bearer.trim_start_matches("Bearer ");
            for (path, body) in bodies {
                let ask = || serving.ask(path, body);
                for ask in [
                    ask().header("authorization", bearer),
                    ask().header("x-api-key", key),
                    ask().bearer(GOOD).header("x-api-key", bearer),
                ] {
                    let reply = ask.send().await;
                    statuses.push(reply.status);
                    self.said.push(format!("{:?}", reply.headers));
                    self.said.push(reply.text().await);
                }
            }
        }
        // Refusals of every kind, and what is served.
        for status in [200, 400, 401, 403, 404] {
            assert!(statuses.contains(&status), "{status}");
        }
        // What is no request at all.
        let mut raw = Raw::connect(serving.public).await;
        let nonsense =
            format!("POST {CHAT} HTTP/1.1\r\nauthorization: Bearer {MARK}\r\nx y: z\r\n\r\n");
        raw.send(nonsense).await;
        self.said.push(raw.read_to_end().await);
    }

    async fn over_http2(&mut self, serving: &Serving) {
        let stream = tokio::net::TcpStream::connect(serving.public).await;
        let io = TokioIo::new(stream.unwrap());
        let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, connection) = shaken.await.unwrap();
        let connection = tokio::spawn(connection);
        for bearer in &self.bearers {
            let request = hyper::Request::post(format!("http://localhost{CHAT}"))
                .header("authorization", bearer)
                .header("x-api-key", format!("{MARK}-of-http-2"))
                .body(Full::<Bytes>::from(self.chat.clone()))
                .unwrap();
            let answer = within(sender.send_request(request)).await.unwrap();
            let bytes = within(answer.into_body().collect()).await.unwrap();
            let text = String::from_utf8(bytes.to_bytes().to_vec());
            self.said.push(text.unwrap());
        }
        drop(sender);
        within(connection).await.unwrap().unwrap();
    }

    async fn over_quic(&mut self, serving: &Serving, protocol: Protocol) {
        let visitor = Visitor::by(Quic::new(serving.dir.path()), protocol);
        let visit = visitor.visit(serving.secure).await;
        for bearer in self.bearers.iter().filter(|bearer| bearer.is_ascii()) {
            let token = bearer.trim_start_matches("Bearer ");
            let answer = visit.ask(&Asked::chat("", token)).await;
            self.said.push(answer.text);
        }
        for (credential, [served, proven]) in
            [(GOOD, ["one", "two"]), (&self.jwt, ["three", "four"])]
        {
            let bind = Asked {
                token: credential.to_owned(),
                ..Asked::new("POST", BIND, "{}")
            };
            let answer = visit.ask(&bind).await;
            let token = answer.json()["token"].as_str().expect("a token").to_owned();
            add(&mut self.secrets, &token);
            let sign = |id| Asked::chat(id, &token).proven(visit.secrets.full());
            let (served, proven) = (sign(served), sign(proven));
            for asked in [&served, &proven] {
                add(&mut self.secrets, asked.proof.as_deref().unwrap());
            }
            let outcome = visit.ask(&served).await;
            assert_eq!(outcome.status, 200, "{outcome:?}");
            let wrong = Asked {
                body: "{}".to_owned(),
                ..proven
            };
            for asked in [wrong, Asked::chat("", &token)] {
                let answer = visit.ask(&asked).await;
                assert_eq!(answer.status, 401, "{answer:?}");
                self.said.push(answer.text);
            }
        }
        visit.connection.close(0_u8.into(), b"");
    }

    async fn at_the_operators_port(&mut self, serving: &Serving) {
        let wrong = format!("{MARK}-wrong");
        for (key, status) in [(&*wrong, 401), (GOOD, 403), (OPERATOR, 200)] {
            let ask = Ask::new(serving.ops, "GET", "/metrics", Vec::new());
            let reply = ask.bearer(key).send().await;
            assert_eq!(reply.status, status);
            self.said.push(reply.text().await);
        }
    }

    fn finds_nothing(&self) {
        for secret in &self.secrets {
            for text in &self.said {
                if let Some(at) = text.find(secret) {
                    let from = text[..at].rfind('\n').map_or(0, |at| at + 1);
                    let line = text[from..].lines().next().unwrap_or_default();
                    panic!("{secret} is in: {line}");
                }
            }
        }
    }
}

#[tokio::test]
async fn no_credential_is_logged_counted_or_answered() {
    let serving = Serving::start().await;
    let mut search = Search::new();
    search.over_http1(&serving).await;
    search.over_http2(&serving).await;
    for protocol in Protocol::ALL {
        search.over_quic(&serving, protocol).await;
    }
    search.at_the_operators_port(&serving).await;
    let log = serving.end().await;
    for logged in ["TRACE", "h2::", "quinn", "invalid_api_key"] {
        assert!(log.contains(logged), "{logged}");
    }
    search.said.push(log);
    search.finds_nothing();
}

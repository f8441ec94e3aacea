//! One connection to the server, and the three scripts that are run over it.

use std::sync::LazyLock;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind, Value,
};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::config::Url;

/// What every script returns.
pub(super) type Reply = [i64; 3];

/// A script by its digest, which is what is sent once the server knows it.
pub(super) struct Code {
    text: &'static str,
    digest: String,
}

impl Code {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            digest: Script::new(text).get_hash().to_owned(),
        }
    }
}

pub(super) static RATE: LazyLock<Code> =
    LazyLock::new(|| Code::new(include_str!("scripts/rate.lua")));
pub(super) static QUOTA: LazyLock<Code> =
    LazyLock::new(|| Code::new(include_str!("scripts/quota.lua")));
pub(super) static NODES: LazyLock<Code> =
    LazyLock::new(|| Code::new(include_str!("scripts/nodes.lua")));

/// One run of a script.
pub(super) struct Call {
    pub(super) code: &'static LazyLock<Code>,
    pub(super) keys: Vec<String>,
    pub(super) arguments: Vec<String>,
}

impl Call {
    fn command(&self, by: By) -> redis::Cmd {
        let mut command = match by {
            By::Digest => redis::cmd("EVALSHA"),
            By::Text => redis::cmd("EVAL"),
        };
        command.arg(match by {
            By::Digest => self.code.digest.as_str(),
            By::Text => self.code.text,
        });
        command.arg(self.keys.len()).arg(&self.keys);
        command.arg(&self.arguments);
        command
    }
}

#[derive(Clone, Copy)]
enum By {
    Digest,
    Text,
}

/// A connection.
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// Reads and writes it; ends with this.
    _driver: AbortOnDropHandle<()>,
}

impl Link {
    pub(super) async fn open(url: &Url) -> RedisResult<Self> {
        let stream = TcpStream::connect(url.address()).await?;
        stream.set_nodelay(true)?;
        let settings = url.info().redis_settings().clone().set_skip_set_lib_name();
        // Who calls bounds the time.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&settings, stream, config).await?;
        Ok(Self {
            connection,
            _driver: AbortOnDropHandle::new(tokio::spawn(driver)),
        })
    }

    /// Runs all of `calls` in one round trip, or in two when the server has forgotten a script.
    pub(super) async fn run(&mut self, calls: &[Call]) -> RedisResult<Vec<Reply>> {
        let mut values = self.send(calls.iter(), By::Digest).await?;
        let is_unknown = |value: &Value| matches!(value, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript));
        if values.iter().any(is_unknown) {
            let unknown = calls
                .iter()
                .zip(&values)
                .filter(|(_, value)| is_unknown(value));
            let mut again = self
                .send(unknown.map(|(call, _)| call), By::Text)
                .await?
                .into_iter();
            for value in values.iter_mut().filter(|value| is_unknown(value)) {
                *value = again.next().unwrap_or(Value::Nil);
            }
        }
        values.into_iter().map(reply).collect()
    }

    async fn send(
        &mut self,
        calls: impl Iterator<Item = &Call>,
        by: By,
    ) -> RedisResult<Vec<Value>> {
        let mut batch = redis::pipe();
        for call in calls {
            batch.add_command(call.command(by));
        }
        let count = batch.len();
        self.connection.send_packed_commands(&batch, 0, count).await
    }
}

fn reply(value: Value) -> RedisResult<Reply> {
    if let Value::ServerError(error) = value {
        return Err(error.into());
    }
    redis::from_redis_value::<[i64; 3]>(value)
        .map_err(|_| RedisError::from((ErrorKind::UnexpectedReturnType, "no answer of ours")))
}

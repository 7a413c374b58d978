//! Calls over D-Bus that may fail: each has a bounded time, and what went wrong is a sentence for the log.

use std::time::Duration;

use serde::Serialize;
use zbus::{Connection, DynamicType, Message};

/// How long a bus or a service may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// An object of a service, seen through one of its interfaces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) service: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

impl Object {
    /// Calls one of its methods.
    pub(super) async fn call<B: Serialize + DynamicType>(
        &self,
        connection: &Connection,
        method: &str,
        arguments: &B,
    ) -> Result<Message, String> {
        // On a line to one peer only, there are no names.
        let destination = connection.is_bus().then_some(self.service);
        let call = connection.call_method(destination, self.path, Some(self.interface), method, arguments);
        match tokio::time::timeout(ANSWER_MAX, call).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err(format!("{} does not answer", self.service)),
        }
    }
}

/// A bus, where it is there and lets us in.
pub(super) async fn connect(bus: impl Future<Output = zbus::Result<Connection>>) -> Option<Connection> {
    tokio::time::timeout(ANSWER_MAX, bus).await.ok()?.ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::pin::Pin;

    /// The two ends of a line: what stands for the service, and what calls it.
    pub(in crate::desktop) async fn line() -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guid = zbus::Guid::generate();
        let server = zbus::connection::Builder::unix_stream(theirs).server(guid).p2p().build();
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::join!(server, client);
        (server.unwrap(), client.unwrap())
    }

    /// The next call, which must be of this method of this object.
    pub(in crate::desktop) async fn next_call(
        calls: &mut zbus::MessageStream,
        of: &Object,
        method: &str,
    ) -> Option<Message> {
        use zbus::export::futures_core::Stream;
        let next = std::future::poll_fn(|cx| Pin::new(&mut *calls).poll_next(cx));
        let call = next.await.and_then(Result::ok)?;
        let header = call.header();
        assert_eq!(header.member().unwrap().as_str(), method);
        assert_eq!(header.interface().unwrap().as_str(), of.interface);
        assert_eq!(header.path().unwrap().as_str(), of.path);
        Some(call)
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named() {
        let (server, client) = line().await;
        let object = Object { service: "org.example", path: "/org/example", interface: "org.example.One" };
        drop(server);
        assert!(object.call(&client, "Ask", &("x",)).await.is_err());
        assert!(connect(async { Ok(client) }).await.is_some());
        assert!(connect(async { Err(zbus::Error::Unsupported) }).await.is_none());
    }
}

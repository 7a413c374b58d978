//! D-Bus calls with a time limit. Errors are sentences for the log.

use std::time::Duration;

use serde::Serialize;
use zbus::{Connection, DynamicType, Message};

use crate::units::exact_duration;

/// Time limit of a connection or a call.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// One interface of an object of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct DbusObject {
    pub(super) service: &'static str,
    pub(super) path: &'static str,
    pub(super) interface: &'static str,
}

impl DbusObject {
    pub(super) async fn call<B: Serialize + DynamicType>(
        &self,
        connection: &Connection,
        method: &str,
        arguments: &B,
    ) -> Result<Message, String> {
        // A peer-to-peer connection, as in the tests, has no bus names.
        let destination = connection.is_bus().then_some(self.service);
        let call = connection.call_method(destination, self.path, Some(self.interface), method, arguments);
        match tokio::time::timeout(ANSWER_MAX, call).await {
            Ok(answer) => answer.map_err(|e| e.to_string()),
            Err(_) => Err(format!("{} does not answer within {}", self.service, exact_duration(ANSWER_MAX))),
        }
    }
}

/// Connects to a bus; `None` if there is none or it refuses.
pub(super) async fn connect(bus: impl Future<Output = zbus::Result<Connection>>) -> Option<Connection> {
    tokio::time::timeout(ANSWER_MAX, bus).await.ok()?.ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::pin::Pin;

    /// The two ends of a connection: the service, and its client.
    pub(in crate::desktop) async fn connection_pair() -> (Connection, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guid = zbus::Guid::generate();
        let server = zbus::connection::Builder::unix_stream(theirs).server(guid).p2p().build();
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::join!(server, client);
        (server.unwrap(), client.unwrap())
    }

    /// The next call; `None` when the connection is closed. Fails if it is another method or object.
    pub(in crate::desktop) async fn next_call(
        calls: &mut zbus::MessageStream,
        object: &DbusObject,
        method: &str,
    ) -> Option<Message> {
        use zbus::export::futures_core::Stream;
        let next = std::future::poll_fn(|cx| Pin::new(&mut *calls).poll_next(cx));
        let call = next.await.and_then(Result::ok)?;
        let header = call.header();
        assert_eq!(header.member().unwrap().as_str(), method);
        assert_eq!(header.interface().unwrap().as_str(), object.interface);
        assert_eq!(header.path().unwrap().as_str(), object.path);
        Some(call)
    }

    #[tokio::test]
    async fn call_fails_without_a_service() {
        let (server, client) = connection_pair().await;
        let object =
            DbusObject { service: "org.example", path: "/org/example", interface: "org.example.One" };
        drop(server);
        assert!(object.call(&client, "Ask", &("x",)).await.is_err());
        assert!(connect(async { Ok(client) }).await.is_some());
        assert!(connect(async { Err(zbus::Error::Unsupported) }).await.is_none());
    }
}

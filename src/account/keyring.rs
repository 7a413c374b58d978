//! The keyring of the desktop session: the freedesktop Secret Service, over D-Bus.
//!
//! Secrets cross the user's own bus, a socket that only the user's processes can open; each of those may ask the
//! keyring itself, so the transfer is not encrypted once more. A keyring that is locked asks the user to unlock
//! it; the wait for that is bounded.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;
use zbus::{
    Connection, DynamicType, MatchRule, MessageStream, ObjectPath, OwnedObjectPath, OwnedVariant, Type,
    Variant,
};

use super::AccountName;
use crate::error::{Error, ErrorKind, Result};

const SERVICE: &str = "org.freedesktop.secrets";
const ROOT: &str = "/org/freedesktop/secrets";
/// The collection that is used unless the user says otherwise, by its alias.
const COLLECTION: &str = "/org/freedesktop/secrets/aliases/default";
const PROMPT: &str = "org.freedesktop.Secret.Prompt";
/// How long one call may take.
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long the user may take to unlock the keyring.
const PROMPT_MAX: Duration = Duration::from_secs(120);
/// The path that means "no object".
const NOTHING: &str = "/";

/// The struct `(oayays)` of the protocol.
#[derive(Deserialize, Type)]
struct Held {
    _session: OwnedObjectPath,
    _parameters: Vec<u8>,
    value: Vec<u8>,
    _content_type: String,
}

struct Keyring {
    bus: Connection,
    session: OwnedObjectPath,
}

/// Whether there is a keyring that takes secrets. It may ask the user to unlock it.
pub async fn is_there() -> Result<()> {
    let keyring = Keyring::open().await?;
    keyring.unlock(&[ObjectPath::try_from(COLLECTION).map_err(broken)?.into()]).await
}

/// Stores the secrets of an account, in place of what was there.
pub(super) async fn put(name: &AccountName, secrets: &[u8]) -> Result<()> {
    let keyring = Keyring::open().await?;
    keyring.unlock(&[ObjectPath::try_from(COLLECTION).map_err(broken)?.into()]).await?;
    let label = format!("pdsfs account {name}");
    let properties: HashMap<&str, Variant<'_>> = HashMap::from([
        ("org.freedesktop.Secret.Item.Label", Variant::from(label.as_str())),
        ("org.freedesktop.Secret.Item.Attributes", Variant::from(attributes(name))),
    ]);
    let secret = (&keyring.session, Vec::<u8>::new(), secrets, "application/json");
    let body = (properties, secret, true);
    let reply = keyring.call(COLLECTION, "org.freedesktop.Secret.Collection", "CreateItem", &body).await?;
    let (_item, prompt): (OwnedObjectPath, OwnedObjectPath) = reply.body().deserialize().map_err(broken)?;
    keyring.prompt(&prompt).await
}

/// The secrets of an account; `None` where the keyring has none.
pub(super) async fn get(name: &AccountName) -> Result<Option<Vec<u8>>> {
    let keyring = Keyring::open().await?;
    let Some(item) = keyring.find(name).await? else { return Ok(None) };
    let body = (&keyring.session,);
    let reply = keyring.call(item.as_str(), "org.freedesktop.Secret.Item", "GetSecret", &body).await?;
    let (held,): (Held,) = reply.body().deserialize().map_err(broken)?;
    Ok(Some(held.value))
}

/// Takes the secrets of an account away, if they are there.
pub(super) async fn remove(name: &AccountName) -> Result<()> {
    let keyring = Keyring::open().await?;
    let Some(item) = keyring.find(name).await? else { return Ok(()) };
    let reply = keyring.call(item.as_str(), "org.freedesktop.Secret.Item", "Delete", &()).await?;
    let prompt: OwnedObjectPath = reply.body().deserialize().map_err(broken)?;
    keyring.prompt(&prompt).await
}

fn attributes(name: &AccountName) -> HashMap<&str, &str> {
    HashMap::from([("application", "pdsfs"), ("account", name.as_str())])
}

fn broken(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("the keyring of the desktop session: {e}"))
}

fn late(what: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("the keyring of the desktop session: {what}"))
}

impl Keyring {
    async fn open() -> Result<Self> {
        let bus = tokio::time::timeout(CALL_MAX, Connection::session())
            .await
            .map_err(|_| late("the session bus does not answer"))?
            .map_err(|e| broken(format!("there is no session bus ({e})")))?;
        let none = ObjectPath::try_from(NOTHING).map_err(broken)?;
        let mut keyring = Self { bus, session: none.into() };
        let body = ("plain", Variant::from(""));
        let reply = keyring.call(ROOT, "org.freedesktop.Secret.Service", "OpenSession", &body).await?;
        let (_output, session): (OwnedVariant, OwnedObjectPath) =
            reply.body().deserialize().map_err(broken)?;
        keyring.session = session;
        Ok(keyring)
    }

    async fn call(
        &self,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<zbus::Message> {
        let call = self.bus.call_method(Some(SERVICE), path, Some(interface), method, body);
        tokio::time::timeout(CALL_MAX, call)
            .await
            .map_err(|_| late(&format!("{method} got no answer")))?
            .map_err(broken)
    }

    async fn find(&self, name: &AccountName) -> Result<Option<OwnedObjectPath>> {
        let body = (attributes(name),);
        let reply = self.call(ROOT, "org.freedesktop.Secret.Service", "SearchItems", &body).await?;
        let (open, locked): (Vec<OwnedObjectPath>, Vec<OwnedObjectPath>) =
            reply.body().deserialize().map_err(broken)?;
        if let Some(item) = open.into_iter().next() {
            return Ok(Some(item));
        }
        let Some(item) = locked.into_iter().next() else { return Ok(None) };
        self.unlock(std::slice::from_ref(&item)).await?;
        Ok(Some(item))
    }

    async fn unlock(&self, objects: &[OwnedObjectPath]) -> Result<()> {
        let body = (objects,);
        let reply = self.call(ROOT, "org.freedesktop.Secret.Service", "Unlock", &body).await?;
        let (_open, prompt): (Vec<OwnedObjectPath>, OwnedObjectPath) =
            reply.body().deserialize().map_err(broken)?;
        self.prompt(&prompt).await
    }

    /// Lets the keyring ask the user, where it wants to.
    async fn prompt(&self, prompt: &OwnedObjectPath) -> Result<()> {
        if prompt.as_str() == NOTHING {
            return Ok(());
        }
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(PROMPT)
            .member("Completed")
            .path(prompt.as_str())
            .build()
            .map_err(broken)?;
        // Listening begins before the question, so that no answer is missed.
        let mut answers =
            MessageStream::for_match_rule(rule, &self.bus, Some(NonZeroUsize::MIN)).await.map_err(broken)?;
        self.call(prompt.as_str(), PROMPT, "Prompt", &("",)).await?;
        let next = std::future::poll_fn(|cx| {
            use zbus::export::futures_core::Stream as _;
            std::pin::Pin::new(&mut answers).poll_next(cx)
        });
        let answer = tokio::time::timeout(PROMPT_MAX, next).await;
        let answer = answer.map_err(|_| late("nobody unlocked it"))?;
        let answer = answer.ok_or_else(|| broken("the session bus is gone"))?.map_err(broken)?;
        let (dismissed, _result): (bool, OwnedVariant) = answer.body().deserialize().map_err(broken)?;
        if dismissed { Err(broken("it stays locked: the question was dismissed")) } else { Ok(()) }
    }
}

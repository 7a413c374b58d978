//! The keyring of the desktop session: the freedesktop Secret Service, over D-Bus.
//!
//! Secrets cross the user's own bus, a socket that only the user's processes can open; each of those may ask the
//! keyring itself, so the transfer is not encrypted once more. A keyring that is locked asks the user to unlock
//! it; the wait for that is bounded, there is one question at a time, and a process that was refused does not ask
//! again.

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
/// How long the user may take to unlock the keyring: less than a service manager waits for a start.
const PROMPT_MAX: Duration = Duration::from_secs(90);
/// The path that means "no object".
const NOTHING: &str = "/";

/// Whether nobody unlocked the keyring when this process asked. Held while it asks.
static IS_REFUSED: tokio::sync::Mutex<bool> = tokio::sync::Mutex::const_new(false);

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

/// Whether the user was asked to unlock it, and did not.
pub fn is_refused() -> bool {
    IS_REFUSED.try_lock().is_ok_and(|is_refused| *is_refused)
}

/// Stores the secrets of an account, in place of what was there.
pub(super) async fn put(name: &AccountName, secrets: &[u8]) -> Result<()> {
    Keyring::open().await?.put(name, secrets).await
}

/// The secrets of an account; `None` where the keyring has none.
pub(super) async fn get(name: &AccountName) -> Result<Option<Vec<u8>>> {
    Keyring::open().await?.get(name).await
}

/// Takes the secrets of an account away, if they are there.
pub(super) async fn remove(name: &AccountName) -> Result<()> {
    Keyring::open().await?.remove(name).await
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

    async fn put(&self, name: &AccountName, secrets: &[u8]) -> Result<()> {
        self.unlock(&[ObjectPath::try_from(COLLECTION).map_err(broken)?.into()]).await?;
        let label = format!("pdsfs account {name}");
        let properties: HashMap<&str, Variant<'_>> = HashMap::from([
            ("org.freedesktop.Secret.Item.Label", Variant::from(label.as_str())),
            ("org.freedesktop.Secret.Item.Attributes", Variant::from(attributes(name))),
        ]);
        let secret = (&self.session, Vec::<u8>::new(), secrets, "application/json");
        let body = (properties, secret, true);
        let reply = self.call(COLLECTION, "org.freedesktop.Secret.Collection", "CreateItem", &body).await?;
        let (item, prompt): (OwnedObjectPath, OwnedObjectPath) =
            reply.body().deserialize().map_err(broken)?;
        self.prompt(&prompt).await?;
        // Not every keyring replaces, and an older one would be found as well as this.
        if item.as_str() != NOTHING {
            let (open, _locked) = self.search(name).await?;
            for older in open.iter().filter(|found| **found != item) {
                self.delete(older).await?;
            }
        }
        Ok(())
    }

    async fn get(&self, name: &AccountName) -> Result<Option<Vec<u8>>> {
        let (mut open, locked) = self.search(name).await?;
        if open.is_empty() && !locked.is_empty() {
            self.unlock(&locked).await?;
            open = locked;
        }
        let Some(item) = open.first() else { return Ok(None) };
        let body = (&self.session,);
        let reply = self.call(item.as_str(), "org.freedesktop.Secret.Item", "GetSecret", &body).await?;
        let (held,): (Held,) = reply.body().deserialize().map_err(broken)?;
        Ok(Some(held.value))
    }

    async fn remove(&self, name: &AccountName) -> Result<()> {
        let (mut items, locked) = self.search(name).await?;
        if !locked.is_empty() {
            self.unlock(&locked).await?;
            items.extend(locked);
        }
        for item in &items {
            self.delete(item).await?;
        }
        Ok(())
    }

    async fn delete(&self, item: &OwnedObjectPath) -> Result<()> {
        let reply = self.call(item.as_str(), "org.freedesktop.Secret.Item", "Delete", &()).await?;
        let prompt: OwnedObjectPath = reply.body().deserialize().map_err(broken)?;
        self.prompt(&prompt).await
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

    /// The items of an account: those that can be read, and those that are locked.
    async fn search(&self, name: &AccountName) -> Result<(Vec<OwnedObjectPath>, Vec<OwnedObjectPath>)> {
        let body = (attributes(name),);
        let reply = self.call(ROOT, "org.freedesktop.Secret.Service", "SearchItems", &body).await?;
        reply.body().deserialize().map_err(broken)
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
        let mut is_refused = IS_REFUSED.lock().await;
        if *is_refused {
            let what = "it is locked, and nobody unlocked it when this program asked; it does not ask again, so \
                unlock it in the desktop session";
            return Err(broken(what));
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
        let Ok(answer) = tokio::time::timeout(PROMPT_MAX, next).await else {
            *is_refused = true;
            // A question that nobody waits for any more goes away, if it can.
            self.call(prompt.as_str(), PROMPT, "Dismiss", &()).await.ok();
            return Err(late("nobody unlocked it"));
        };
        let answer = answer.ok_or_else(|| broken("the session bus is gone"))?.map_err(broken)?;
        let (dismissed, _result): (bool, OwnedVariant) = answer.body().deserialize().map_err(broken)?;
        *is_refused = dismissed;
        if dismissed { Err(broken("it stays locked: the question was dismissed")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LOCKED: &str = "/org/freedesktop/secrets/collection/login/1";
    const QUESTION: &str = "/org/freedesktop/secrets/prompt/1";

    /// A keyring that is locked, and a user who does not want to unlock it. Counts how often he was asked.
    async fn locked() -> (Keyring, Connection, Arc<AtomicUsize>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guid = zbus::Guid::generate();
        let service = zbus::connection::Builder::unix_stream(theirs).server(guid).p2p().build();
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (service, client) = tokio::join!(service, client);
        let (service, bus) = (service.unwrap(), client.unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let (answering, count) = (service.clone(), asked.clone());
        let mut calls = MessageStream::from(&service);
        tokio::spawn(async move {
            use zbus::export::futures_core::Stream as _;
            let path = |text: &str| OwnedObjectPath::from(ObjectPath::try_from(text.to_owned()).unwrap());
            let none = Vec::<OwnedObjectPath>::new;
            loop {
                let next = std::future::poll_fn(|cx| std::pin::Pin::new(&mut calls).poll_next(cx)).await;
                let Some(Ok(call)) = next else { return };
                let member = call.header().member().unwrap().to_string();
                let header = call.header();
                match member.as_str() {
                    "SearchItems" => answering.reply(&header, &(none(), vec![path(LOCKED)])).await.unwrap(),
                    "Unlock" => answering.reply(&header, &(none(), path(QUESTION))).await.unwrap(),
                    "Prompt" => {
                        count.fetch_add(1, Ordering::SeqCst);
                        answering.reply(&header, &()).await.unwrap();
                        let answer = (true, Variant::from(""));
                        let to = None::<&str>;
                        answering.emit_signal(to, QUESTION, PROMPT, "Completed", &answer).await.unwrap();
                    }
                    other => panic!("{other}"),
                }
            }
        });
        let session = ObjectPath::try_from("/session").unwrap().into();
        (Keyring { bus, session }, service, asked)
    }

    #[tokio::test]
    async fn who_has_dismissed_the_question_is_not_asked_again() {
        let (keyring, _service, asked) = locked().await;
        let name = AccountName::new("work").unwrap();
        let (first, second) = tokio::join!(keyring.get(&name), keyring.get(&name));
        let said = [first.unwrap_err().to_string(), second.unwrap_err().to_string()];
        assert!(said.iter().any(|said| said.contains("was dismissed")), "{said:?}");
        assert!(said.iter().any(|said| said.contains("does not ask again")), "{said:?}");
        keyring.get(&name).await.unwrap_err();
        keyring.remove(&name).await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(is_refused());
    }
}

//! The keyring of the desktop session: the freedesktop Secret Service, over D-Bus.
//!
//! Secrets cross the session bus, which only processes of the user can open. Each of those may ask the
//! keyring itself, so the transfer is not encrypted additionally. A locked keyring prompts the user to unlock
//! it. The wait is bounded, there is one prompt at a time, and a process whose prompt was dismissed does not
//! prompt again.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;
use zbus::{
    Connection, DynamicType, MatchRule, MessageStream, ObjectPath, OwnedObjectPath, OwnedVariant, Type,
    Variant,
};

use super::account::AccountName;
use crate::error::{Error, ErrorKind, Result};

const SERVICE: &str = "org.freedesktop.secrets";
const ROOT: &str = "/org/freedesktop/secrets";
/// The default collection of the user, by its alias.
const COLLECTION: &str = "/org/freedesktop/secrets/aliases/default";
const PROMPT: &str = "org.freedesktop.Secret.Prompt";
const CALL_MAX: Duration = Duration::from_secs(10);
/// How long the user may take to unlock the keyring: less than the start timeout of a systemd unit.
const PROMPT_MAX: Duration = Duration::from_secs(90);
/// The path that means "no object".
const NO_OBJECT: &str = "/";

/// Whether the user has dismissed or ignored the unlock prompt of this process. Held during a prompt.
static UNLOCK_REFUSED: tokio::sync::Mutex<bool> = tokio::sync::Mutex::const_new(false);

/// The `Secret` struct `(oayays)` of the protocol.
#[derive(Deserialize, Type)]
struct SecretStruct {
    _session: OwnedObjectPath,
    _parameters: Vec<u8>,
    value: Vec<u8>,
    _content_type: String,
}

struct Keyring {
    bus: Connection,
    session: OwnedObjectPath,
}

/// Checks that there is an unlocked keyring. May prompt the user to unlock it.
pub async fn check_available() -> Result<()> {
    let keyring = Keyring::open().await?;
    keyring.unlock(&[ObjectPath::try_from(COLLECTION).map_err(keyring_error)?.into()]).await
}

/// Whether the user has dismissed or ignored the unlock prompt of this process.
pub fn unlock_refused() -> bool {
    UNLOCK_REFUSED.try_lock().is_ok_and(|unlock_refused| *unlock_refused)
}

/// Stores the secrets of an account and replaces older ones.
pub(super) async fn put(name: &AccountName, secrets: &[u8]) -> Result<()> {
    Keyring::open().await?.put(name, secrets).await
}

/// The secrets of an account. `None` if the keyring has none.
pub(super) async fn get(name: &AccountName) -> Result<Option<Vec<u8>>> {
    Keyring::open().await?.get(name).await
}

/// Deletes the secrets of an account, if there are any.
pub(super) async fn remove(name: &AccountName) -> Result<()> {
    Keyring::open().await?.remove(name).await
}

fn attributes(name: &AccountName) -> HashMap<&str, &str> {
    HashMap::from([("application", "pdsfs"), ("account", name.as_str())])
}

fn keyring_error(e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::with_source(ErrorKind::Io, "the keyring of the desktop session", e)
}

fn timed_out(what: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("the keyring of the desktop session: {what}"))
}

impl Keyring {
    async fn open() -> Result<Self> {
        let bus = tokio::time::timeout(CALL_MAX, Connection::session())
            .await
            .map_err(|_| timed_out("no answer from the session bus"))?
            .map_err(|e| {
                Error::with_source(ErrorKind::Io, "the keyring of the desktop session: no session bus", e)
            })?;
        let none = ObjectPath::try_from(NO_OBJECT).map_err(keyring_error)?;
        let mut keyring = Self { bus, session: none.into() };
        let body = ("plain", Variant::from(""));
        let reply = keyring.call(ROOT, "org.freedesktop.Secret.Service", "OpenSession", &body).await?;
        let (_output, session): (OwnedVariant, OwnedObjectPath) =
            reply.body().deserialize().map_err(keyring_error)?;
        keyring.session = session;
        Ok(keyring)
    }

    async fn put(&self, name: &AccountName, secrets: &[u8]) -> Result<()> {
        self.unlock(&[ObjectPath::try_from(COLLECTION).map_err(keyring_error)?.into()]).await?;
        let label = format!("pdsfs account {name}");
        let properties: HashMap<&str, Variant<'_>> = HashMap::from([
            ("org.freedesktop.Secret.Item.Label", Variant::from(label.as_str())),
            ("org.freedesktop.Secret.Item.Attributes", Variant::from(attributes(name))),
        ]);
        let secret = (&self.session, Vec::<u8>::new(), secrets, "application/json");
        let body = (properties, secret, true);
        let reply = self.call(COLLECTION, "org.freedesktop.Secret.Collection", "CreateItem", &body).await?;
        let (item, prompt): (OwnedObjectPath, OwnedObjectPath) =
            reply.body().deserialize().map_err(keyring_error)?;
        self.prompt(&prompt).await?;
        // Not every keyring replaces an existing item, and an older one would be found too.
        if item.as_str() != NO_OBJECT {
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
        let (secret,): (SecretStruct,) = reply.body().deserialize().map_err(keyring_error)?;
        Ok(Some(secret.value))
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
        let prompt: OwnedObjectPath = reply.body().deserialize().map_err(keyring_error)?;
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
            .map_err(|_| timed_out(&format!("no answer to {method}")))?
            .map_err(keyring_error)
    }

    /// The unlocked and the locked items of an account.
    async fn search(&self, name: &AccountName) -> Result<(Vec<OwnedObjectPath>, Vec<OwnedObjectPath>)> {
        let body = (attributes(name),);
        let reply = self.call(ROOT, "org.freedesktop.Secret.Service", "SearchItems", &body).await?;
        reply.body().deserialize().map_err(keyring_error)
    }

    async fn unlock(&self, objects: &[OwnedObjectPath]) -> Result<()> {
        let body = (objects,);
        let reply = self.call(ROOT, "org.freedesktop.Secret.Service", "Unlock", &body).await?;
        let (_open, prompt): (Vec<OwnedObjectPath>, OwnedObjectPath) =
            reply.body().deserialize().map_err(keyring_error)?;
        self.prompt(&prompt).await
    }

    /// Runs a prompt of the keyring, if it needs one.
    async fn prompt(&self, prompt: &OwnedObjectPath) -> Result<()> {
        if prompt.as_str() == NO_OBJECT {
            return Ok(());
        }
        let mut unlock_refused = UNLOCK_REFUSED.lock().await;
        if *unlock_refused {
            let what = "locked, and the unlock prompt was dismissed; pdsfs does not prompt again, so unlock \
                the keyring in the desktop session";
            return Err(keyring_error(what));
        }
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .interface(PROMPT)
            .member("Completed")
            .path(prompt.as_str())
            .build()
            .map_err(keyring_error)?;
        // Subscribes before the prompt, so that no answer is missed.
        let mut answers = MessageStream::for_match_rule(rule, &self.bus, Some(NonZeroUsize::MIN))
            .await
            .map_err(keyring_error)?;
        self.call(prompt.as_str(), PROMPT, "Prompt", &("",)).await?;
        let next = std::future::poll_fn(|cx| {
            use zbus::export::futures_core::Stream as _;
            std::pin::Pin::new(&mut answers).poll_next(cx)
        });
        let Ok(answer) = tokio::time::timeout(PROMPT_MAX, next).await else {
            *unlock_refused = true;
            // Closes the abandoned prompt, if the keyring supports that.
            self.call(prompt.as_str(), PROMPT, "Dismiss", &()).await.ok();
            return Err(timed_out("locked: the unlock prompt was not answered; unlock it and try again"));
        };
        let answer =
            answer.ok_or_else(|| keyring_error("the session bus has closed"))?.map_err(keyring_error)?;
        let (dismissed, _result): (bool, OwnedVariant) =
            answer.body().deserialize().map_err(keyring_error)?;
        *unlock_refused = dismissed;
        let what = "locked: the unlock prompt was dismissed; unlock it in the desktop session and try again";
        if dismissed { Err(keyring_error(what)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LOCKED: &str = "/org/freedesktop/secrets/collection/login/1";
    const PROMPT_PATH: &str = "/org/freedesktop/secrets/prompt/1";

    /// A locked keyring whose user dismisses every prompt. Counts the prompts.
    async fn locked() -> (Keyring, Connection, Arc<AtomicUsize>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let guid = zbus::Guid::generate();
        let service = zbus::connection::Builder::unix_stream(theirs).server(guid).p2p().build();
        let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (service, client) = tokio::join!(service, client);
        let (service, bus) = (service.unwrap(), client.unwrap());
        let prompts = Arc::new(AtomicUsize::new(0));
        let (answering, count) = (service.clone(), prompts.clone());
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
                    "Unlock" => answering.reply(&header, &(none(), path(PROMPT_PATH))).await.unwrap(),
                    "Prompt" => {
                        count.fetch_add(1, Ordering::SeqCst);
                        answering.reply(&header, &()).await.unwrap();
                        let answer = (true, Variant::from(""));
                        let to = None::<&str>;
                        answering.emit_signal(to, PROMPT_PATH, PROMPT, "Completed", &answer).await.unwrap();
                    }
                    other => panic!("{other}"),
                }
            }
        });
        let session = ObjectPath::try_from("/session").unwrap().into();
        (Keyring { bus, session }, service, prompts)
    }

    #[tokio::test]
    async fn dismissed_prompt_is_not_repeated() {
        let (keyring, _service, prompts) = locked().await;
        let name = AccountName::new("work").unwrap();
        let (first, second) = tokio::join!(keyring.get(&name), keyring.get(&name));
        let errors = [first.unwrap_err().to_string(), second.unwrap_err().to_string()];
        assert!(errors.iter().any(|text| text.contains("prompt was dismissed")), "{errors:?}");
        assert!(errors.iter().any(|text| text.contains("does not prompt again")), "{errors:?}");
        keyring.get(&name).await.unwrap_err();
        keyring.remove(&name).await.unwrap_err();
        assert_eq!(prompts.load(Ordering::SeqCst), 1);
        assert!(unlock_refused());
    }
}

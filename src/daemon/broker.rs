//! The broker's end of a connection: see [`crate::fuse::broker`].
//!
//! The daemon at the other end may be hostile: it parses what the network sends. It can have one drive of the
//! system's configuration mounted where and as the configuration says, end that mount, and learn which processes
//! write files of that mount and which die of a signal.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::liveness::has_died;
use super::{mountpoint, preflight};
use crate::config::MountOptions;
use crate::error::{Error, ErrorKind, Result};
use crate::fuse::broker::{Answer, ExpectedMount, Message, Question, receive, send};
use crate::fuse::mountinfo::{self, Mount};
use crate::fuse::{DetachedMount, MountDir, detach_if, mount_root};
use crate::ids::Ino;
use crate::units::exact_duration;
use crate::vfs::{OwnInspector, ProcessInspector as _};

/// Questions that are answered at the same time.
const THREADS: usize = 8;

/// Time limit of the first question and of each step.
const STEP_MAX: Duration = Duration::from_secs(60);

/// A mount as the configuration of the system describes it.
#[derive(Debug)]
pub struct ConfiguredMount {
    pub mountpoint: PathBuf,
    /// The source in the mount table.
    pub source: String,
    pub options: MountOptions,
}

/// `New` -> `Prepared` -> `Opened` -> `Attached`. A failed step ends in `Failed`.
#[derive(Debug)]
enum State {
    New,
    Prepared { dir: MountDir, configured: Box<ConfiguredMount> },
    Opened { dir: MountDir, mount: OwnedFd },
    Attached(Arc<AttachedMount>),
    Failed,
}

#[derive(Debug)]
struct AttachedMount {
    mount: Mount,
    inspector: Option<OwnInspector>,
}

/// Serves one connection until it ends, then unmounts. `configured` reads the configuration of a drive, and refuses
/// one that the daemon may not have mounted.
///
/// SIGTERM is ignored while a drive is mounted: a stop of the machine reaches the broker together with the daemon,
/// which still saves files. The end of the daemon ends the connection.
pub fn serve(connection: OwnedFd, configured: impl Fn(&str) -> Result<ConfiguredMount>) -> Result<()> {
    preflight::protect_memory();
    let end = || {
        let waited = exact_duration(STEP_MAX);
        tracing::error!("no answer of the daemon or of a file system for {waited}: the broker ends");
        // The thread that hangs would not see the end of the connection.
        std::process::exit(1)
    };
    let limit = StepLimit { max: STEP_MAX, on_exceeded: &end };
    let (state, served) = answer_questions(&Arc::new(connection), &limit, configured);
    if let State::Attached(attached) = state {
        set_stop_signals(libc::SIG_DFL);
        limit.run(|| detach_if(&attached.mount, |_| true))??;
    }
    served
}

fn answer_questions(
    connection: &Arc<OwnedFd>,
    limit: &StepLimit<'_>,
    configured: impl Fn(&str) -> Result<ConfiguredMount>,
) -> (State, Result<()>) {
    let mut state = State::New;
    loop {
        if let State::Attached(attached) = &state {
            let served = answer_in_threads(connection, attached);
            return (state, served);
        }
        let received = match state {
            State::New => limit.run(|| next_question(connection)).flatten(),
            // The daemon reaches the drive first, which takes any time.
            _ => next_question(connection),
        };
        let (id, question) = match received {
            Ok(Some(question)) => question,
            Ok(None) => return (state, Ok(())),
            Err(error) => return (state, Err(error)),
        };
        let (next, answer, device) = match limit.run(|| step(state, question, &configured)).flatten() {
            Ok((next, answer, device)) => (next, answer, device),
            Err(error) => {
                tracing::error!("{error}");
                (State::Failed, Answer::Refused(error.into()), None)
            }
        };
        state = next;
        reply(connection, id, answer, device.as_ref().map(|device| device.as_fd()));
    }
}

/// `None` at the end of the connection.
fn next_question(connection: &OwnedFd) -> Result<Option<(u64, Question)>> {
    let received = receive::<Question>(connection.as_fd());
    let received = received.map_err(|e| Error::from(e).context("the daemon sent no question"))?;
    Ok(received.map(|(Message { id, body }, _)| (id, body)))
}

/// The steps up to the visible mount. The device is closed here once it is sent: the end of the daemon must end the
/// mount.
fn step(
    state: State,
    question: Question,
    configured: impl Fn(&str) -> Result<ConfiguredMount>,
) -> Result<(State, Answer, Option<OwnedFd>)> {
    match (state, question) {
        (State::New, Question::Prepare { drive, expected }) => {
            let configured = Box::new(configured(&drive)?);
            check_expected(&drive, &configured, &expected)?;
            let dir = mountpoint::prepare(&configured.mountpoint, &configured.options)?;
            let path = dir.path().to_owned();
            Ok((State::Prepared { dir, configured }, Answer::Prepared { path }, None))
        }
        (State::Prepared { dir, configured }, Question::Open) => {
            let DetachedMount { device, mount } =
                DetachedMount::new(&configured.source, &configured.options)?;
            Ok((State::Opened { dir, mount }, Answer::Opened, Some(device)))
        }
        (State::Opened { dir, mount }, Question::Attach) => {
            let mount = dir.attach(&mount)?;
            set_stop_signals(libc::SIG_IGN);
            tracing::info!("mounted {} at {}", mount.source, mount.path.display());
            let inspector = OwnInspector::new(&mount.device);
            let attached = Arc::new(AttachedMount { mount: mount.clone(), inspector });
            Ok((State::Attached(attached), Answer::Attached(mount), None))
        }
        (_, question) => {
            let detail = format!("the broker cannot answer {question:?} now");
            Err(Error::new(ErrorKind::Protocol, detail))
        }
    }
}

/// Environment variables and flags of the daemon must not seem to have an effect that they do not have.
fn check_expected(drive: &str, configured: &ConfiguredMount, expected: &ExpectedMount) -> Result<()> {
    let options = &configured.options;
    let mut differing = vec![
        ("mountpoint", configured.mountpoint != expected.mountpoint),
        ("allow_non_empty", options.allow_non_empty != expected.allow_non_empty),
        ("allow_other", options.allow_other != expected.allow_other),
        ("allow_user_mountpoint", options.allow_user_mountpoint != expected.allow_user_mountpoint),
        ("read_only", options.read_only != expected.read_only),
        ("noexec", options.noexec != expected.noexec),
        ("nosymfollow", options.nosymfollow != expected.nosymfollow),
    ];
    differing.retain(|(_, differs)| *differs);
    if differing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = differing.into_iter().map(|(name, _)| name).collect();
    let detail = format!(
        "the service mounts drive {drive} as /etc/pdsfs/config.toml says: set {} there, not in the environment or the \
         arguments of the unit",
        names.join(", ")
    );
    Err(Error::new(ErrorKind::Invalid, detail))
}

/// Returns at the end of the connection. Each thread takes the next question: a probe waits for the daemon, which may
/// hang, and then the other threads answer.
fn answer_in_threads(connection: &Arc<OwnedFd>, attached: &Arc<AttachedMount>) -> Result<()> {
    let (ended_tx, ended) = channel();
    for _ in 0..THREADS {
        let (connection, attached, ended_tx) = (connection.clone(), attached.clone(), ended_tx.clone());
        std::thread::Builder::new().name("answers".to_owned()).spawn(move || {
            let ended = loop {
                match next_question(&connection) {
                    Ok(Some((id, question))) => {
                        let answer = attached.answer(question);
                        let answer = answer.unwrap_or_else(|error| Answer::Refused(error.into()));
                        reply(&connection, id, answer, None);
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            let _ = ended_tx.send(ended);
        })?;
    }
    drop(ended_tx);
    // An error means that every thread has panicked.
    ended.recv().unwrap_or_else(|e| Err(Error::with_source(ErrorKind::Io, "the broker cannot answer", e)))
}

/// A lost connection shows at the next receive.
fn reply(connection: &OwnedFd, id: u64, answer: Answer, device: Option<BorrowedFd<'_>>) {
    if let Err(e) = send(connection.as_fd(), &Message { id, body: answer }, device) {
        tracing::debug!("cannot answer the daemon: {e}");
    }
}

impl AttachedMount {
    fn answer(&self, question: Question) -> Result<Answer> {
        Ok(match question {
            Question::Current => Answer::Current(mountinfo::current(&self.mount)?),
            Question::Probe => match mount_root::probe(&self.mount) {
                Ok(()) => Answer::Probed(None),
                Err(e) if e.raw_os_error().is_some() => Answer::Probed(e.raw_os_error()),
                Err(e) => return Err(e.into()),
            },
            Question::Detach { only_dead } => {
                Answer::Detached(detach_if(&self.mount, if only_dead { has_died } else { |_| true })?)
            }
            Question::DiesOfSignal { tid } => {
                Answer::Fact(self.inspector.and_then(|inspector| inspector.dies_of_signal(tid)))
            }
            Question::HoldsOpen { tgid, ino } => {
                Answer::Fact(self.inspector.and_then(|inspector| inspector.holds_open(tgid, Ino(ino))))
            }
            question @ (Question::Prepare { .. } | Question::Open | Question::Attach) => {
                let detail = format!("the broker has mounted already: {question:?}");
                return Err(Error::new(ErrorKind::Protocol, detail));
            }
        })
    }
}

fn set_stop_signals(action: libc::sighandler_t) {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: both actions that are passed here are of the system; no handler of this program is set.
        unsafe { libc::signal(signal, action) };
    }
}

/// Time limit for an answer of the daemon or of a file system.
struct StepLimit<'a> {
    max: Duration,
    /// Is called by another thread.
    on_exceeded: &'a (dyn Fn() + Sync),
}

impl StepLimit<'_> {
    fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let (done_tx, done) = channel::<()>();
        std::thread::scope(|scope| {
            std::thread::Builder::new().name("limit".to_owned()).spawn_scoped(scope, move || {
                if done.recv_timeout(self.max) == Err(RecvTimeoutError::Timeout) {
                    (self.on_exceeded)();
                }
            })?;
            let result = work();
            drop(done_tx);
            Ok(result)
        })
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// How long a test waits for an event that must come.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn expected() -> ExpectedMount {
        ExpectedMount {
            mountpoint: "/nonexistent/m".into(),
            allow_non_empty: false,
            allow_other: false,
            allow_user_mountpoint: false,
            read_only: false,
            noexec: false,
            nosymfollow: false,
        }
    }

    fn configured(drive: &str) -> ConfiguredMount {
        let options = MountOptions::default();
        ConfiguredMount { mountpoint: "/nonexistent/m".into(), source: drive.to_owned(), options }
    }

    /// A limit that no test reaches.
    fn no_limit() -> StepLimit<'static> {
        StepLimit { max: Duration::from_secs(3600), on_exceeded: &|| unreachable!("the limit is an hour") }
    }

    /// The kinds of the refusals of these questions.
    fn refusals(questions: Vec<Question>) -> Vec<ErrorKind> {
        let (daemon, broker) = pair();
        let serving = std::thread::spawn(move || {
            answer_questions(&Arc::new(broker), &no_limit(), |drive| Ok(configured(drive))).1
        });
        let ask = |question| {
            send(daemon.as_fd(), &Message { id: 7, body: question }, None).unwrap();
            match receive::<Answer>(daemon.as_fd()).unwrap().unwrap() {
                (Message { id: 7, body: Answer::Refused(refusal) }, None) => Error::from(refusal).kind(),
                other => panic!("{other:?}"),
            }
        };
        let kinds = questions.into_iter().map(ask).collect();
        drop(daemon);
        serving.join().unwrap().unwrap();
        kinds
    }

    #[test]
    fn broker_answers_in_order_only() {
        let prepare = || Question::Prepare { drive: "work".to_owned(), expected: expected() };
        assert_eq!(refusals(vec![Question::Open]), [ErrorKind::Protocol]);
        assert_eq!(refusals(vec![Question::Attach, prepare()]), [ErrorKind::Protocol; 2], "one try");
        assert_eq!(refusals(vec![Question::HoldsOpen { tgid: 1, ino: 1 }]), [ErrorKind::Protocol]);
        assert_eq!(refusals(vec![prepare(), Question::Open]), [ErrorKind::NotFound, ErrorKind::Protocol]);
    }

    #[test]
    fn bytes_that_are_no_question_end_the_broker() {
        let spaces = vec![b' '; 60_000];
        for bytes in [&b"x"[..], &spaces, b"{\"id\":1,\"body\":{\"Mount\":{}}}"] {
            let (daemon, broker) = pair();
            rustix::net::send(&daemon, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
            let served = answer_questions(&Arc::new(broker), &no_limit(), |drive| Ok(configured(drive))).1;
            let error = served.unwrap_err().to_string();
            assert!(error.starts_with("the daemon sent no question: "), "{error}");
        }
    }

    #[test]
    fn difference_to_the_configuration_is_named() {
        let own = configured("work");
        check_expected("work", &own, &expected()).unwrap();
        let other = ExpectedMount { read_only: true, mountpoint: "/m".into(), ..expected() };
        let error = check_expected("work", &own, &other).unwrap_err().to_string();
        assert!(error.contains("set mountpoint, read_only there"), "{error}");
    }

    #[test]
    fn silent_daemon_and_hung_step_exceed_the_limit() {
        let (daemon, broker) = pair();
        let ((exceeded_tx, exceeded), (resume_tx, resume), (served_tx, served)) =
            (channel(), channel::<()>(), channel());
        std::thread::spawn(move || {
            let limit = StepLimit { max: Duration::ZERO, on_exceeded: &|| exceeded_tx.send(()).unwrap() };
            let hung = |drive: &str| {
                resume.recv().unwrap();
                Ok(configured(drive))
            };
            served_tx.send(answer_questions(&Arc::new(broker), &limit, hung).1).unwrap();
        });
        exceeded.recv_timeout(PATIENCE).expect("a silent daemon");
        let prepare = Question::Prepare { drive: "work".to_owned(), expected: expected() };
        send(daemon.as_fd(), &Message { id: 7, body: prepare }, None).unwrap();
        exceeded.recv_timeout(PATIENCE).expect("a hung step");
        resume_tx.send(()).unwrap();
        // The later questions may take any time.
        receive::<Answer>(daemon.as_fd()).unwrap().unwrap();
        drop(daemon);
        served.recv_timeout(PATIENCE).expect("the end of the connection").unwrap();
        assert!(exceeded.try_recv().is_err());
    }
}

//! `pdsfs status --watch` at a terminal: all mounts with their transfers, and recent events.
//!
//! Each update polls all mounts, so a mount that has ended disappears. The terminal is restored at the end,
//! also after an error.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use unicode_width::UnicodeWidthStr as _;

use super::table::{Cells, cells, head};
use crate::cli::columns::cut;
use crate::cli::{format, mounts};
use crate::control::client::DaemonClient;
use crate::control::socket_dirs::SocketUsers;
use crate::control::types::{EventKind, LogEntry, Status, TransferStage};
use crate::daemon::signals::Signals;
use crate::error::{Error, Result};
use crate::messages::status as messages;

/// Events kept for each mount.
const EVENTS_MAX: usize = 100;
/// Rates kept for the graph of each mount.
const RATES_MAX: usize = 200;
/// Share of the screen height for events.
const EVENTS_PERCENT: u16 = 30;
const COLUMN_SPACING: u16 = 1;
/// How often the thread that reads keys checks whether it should stop.
const KEY_WAIT: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Dashboard {
    mounts: BTreeMap<String, MountView>,
    /// The first visible transfer of each mount.
    first: usize,
    note: Option<String>,
}

#[derive(Debug, Default)]
struct MountView {
    status: Status,
    rates: VecDeque<u64>,
    events: VecDeque<LogEntry>,
    last_seq: u64,
}

/// Runs until q, Escape, Ctrl-C or a signal.
pub(super) async fn run(
    wanted: Option<&str>,
    users: SocketUsers,
    interval: Duration,
    signals: &mut Signals,
) -> Result<ExitCode> {
    let mut dashboard = Dashboard::default();
    // An unknown mount is an error before the full screen begins.
    tokio::select! {
        update = poll(wanted, users, BTreeMap::new()) => dashboard.apply(update?),
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    }
    let failed = |e: std::io::Error| Error::from(e).context("cannot use the terminal");
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut keys = Keys::read();
    let outcome = watch(
        &mut dashboard,
        interval,
        |last_seqs| poll(wanted, users, last_seqs),
        |dashboard| terminal.draw(|frame| dashboard.draw(frame)).map(drop).map_err(failed),
        &mut keys.events,
        signals.next(),
    );
    let outcome = outcome.await;
    keys.stop();
    ratatui::restore();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Polls the mounts, draws and handles keys until a key or `stop` ends it. A poll may take long and does not
/// delay the keys.
async fn watch<P: Future<Output = Result<Update>>>(
    dashboard: &mut Dashboard,
    interval: Duration,
    poll: impl Fn(BTreeMap<String, u64>) -> P,
    mut draw: impl FnMut(&Dashboard) -> Result<()>,
    keys: &mut mpsc::Receiver<Event>,
    stop: impl Future,
) -> Result<()> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut polling = std::pin::pin!(None);
    let mut stop = std::pin::pin!(stop);
    loop {
        draw(dashboard)?;
        tokio::select! {
            _ = ticks.tick(), if polling.is_none() => polling.set(Some(poll(dashboard.last_seqs()))),
            update = join(polling.as_mut()) => {
                polling.set(None);
                dashboard.apply_result(update);
            }
            key = keys.recv() => match key {
                Some(event) if !is_quit(&event) => dashboard.scroll(&event),
                _ => return Ok(()),
            },
            _ = &mut stop => return Ok(()),
        }
    }
}

/// Waits for the future, or forever without one.
async fn join<F: Future>(running: Pin<&mut Option<F>>) -> F::Output {
    match running.as_pin_mut() {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

/// Mounts with their new events, and one message for each mount that does not answer.
#[derive(Debug, Default)]
struct Update {
    mounts: Vec<(Status, Vec<LogEntry>)>,
    silent: Vec<String>,
}

/// Requests status and new events of the mounts. `last_seqs` has the newest known event of each mount.
async fn poll(wanted: Option<&str>, users: SocketUsers, last_seqs: BTreeMap<String, u64>) -> Result<Update> {
    let (found, silent) = mounts::answering_and_silent(wanted, users).await?;
    let mut mounts = Vec::new();
    for (daemon, status) in found {
        let since = last_seqs.get(&key(&status)).copied().unwrap_or(0);
        let events = if status.last_seq > since { read_events(&daemon, since).await } else { Vec::new() };
        mounts.push((status, events));
    }
    Ok(Update { mounts, silent })
}

/// Keys from the terminal, read by a thread.
struct Keys {
    events: mpsc::Receiver<Event>,
    is_stopped: Arc<AtomicBool>,
}

impl Keys {
    fn read() -> Self {
        let (event_tx, events) = mpsc::channel(16);
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop = is_stopped.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let event = match event::poll(KEY_WAIT) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(e) => Err(e),
                };
                let Ok(event) = event else { return };
                if event_tx.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Self { events, is_stopped }
    }

    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }
}

fn pressed(event: &Event) -> Option<&KeyEvent> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => Some(key),
        _ => None,
    }
}

fn is_quit(event: &Event) -> bool {
    pressed(event).is_some_and(|key| match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    })
}

impl Dashboard {
    /// The newest known event of each mount.
    fn last_seqs(&self) -> BTreeMap<String, u64> {
        self.mounts.iter().map(|(key, view)| (key.clone(), view.last_seq)).collect()
    }

    fn apply_result(&mut self, update: Result<Update>) {
        match update {
            Ok(update) => self.apply(update),
            Err(error) => {
                self.mounts.clear();
                self.note = Some(format::printable(&error.to_string()));
            }
        }
    }

    fn apply(&mut self, update: Update) {
        self.note = Some(update.silent.join("; ")).filter(|note| !note.is_empty());
        let keys: Vec<_> = update.mounts.iter().map(|(status, _)| key(status)).collect();
        self.mounts.retain(|key, _| keys.contains(key));
        for (status, events) in update.mounts {
            let view = self.mounts.entry(key(&status)).or_default();
            view.last_seq = events.last().map_or(view.last_seq, |entry| entry.seq);
            push_bounded(&mut view.events, events, EVENTS_MAX);
            push_bounded(&mut view.rates, [status.totals.rate_bytes_s], RATES_MAX);
            view.status = status;
        }
        self.first = self.first.min(self.first_max());
    }

    /// Scrolling keeps the last transfer visible.
    fn first_max(&self) -> usize {
        let longest = self.mounts.values().map(|view| view.status.transfers.len()).max();
        longest.unwrap_or(0).saturating_sub(1)
    }

    fn scroll(&mut self, event: &Event) {
        match pressed(event).map(|key| key.code) {
            Some(KeyCode::Down | KeyCode::Char('j')) => self.first = (self.first + 1).min(self.first_max()),
            Some(KeyCode::Up | KeyCode::Char('k')) => self.first = self.first.saturating_sub(1),
            Some(KeyCode::Home) => self.first = 0,
            Some(KeyCode::End) => self.first = self.first_max(),
            _ => {}
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let [area, events, foot] = Layout::vertical([
            Constraint::Min(3),
            Constraint::Percentage(EVENTS_PERCENT),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let heights = self.mounts.values().map(|view| Constraint::Fill(1 + view.weight()));
        for (view, part) in self.mounts.values().zip(Layout::vertical(heights).split(area).iter()) {
            view.draw(frame, *part, self.first);
        }
        if self.mounts.is_empty() {
            frame.render_widget(Paragraph::new(messages::no_mounts()), area);
        }
        self.draw_events(frame, events);
        let note = self.note.as_deref().unwrap_or("q quits, arrow keys scroll; the mounts are not affected");
        frame.render_widget(Paragraph::new(note).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn draw_events(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut all: Vec<_> = self.mounts.values().flat_map(|view| &view.events).collect();
        all.sort_by_key(|entry| entry.at_ms);
        let rows = area.height.saturating_sub(2) as usize;
        let lines = all.iter().rev().take(rows).map(|entry| {
            let time = format::local_time(entry.at_ms);
            let columns = usize::from(area.width).saturating_sub(time.len() + 4);
            let text = format!("{time}  {}", format::event(entry, Some(columns)));
            let color = match entry.what {
                EventKind::Committed => Color::Green,
                EventKind::Failed | EventKind::AttributesRefused => Color::Red,
                EventKind::Warning | EventKind::Missed | EventKind::Unknown => Color::Yellow,
            };
            Line::styled(text, color)
        });
        let newest_first: Vec<_> = lines.collect();
        frame.render_widget(
            Paragraph::new(newest_first).block(Block::bordered().title(" recent events ")),
            area,
        );
    }
}

impl MountView {
    fn weight(&self) -> u16 {
        u16::try_from(self.status.transfers.len()).unwrap_or(u16::MAX).min(20)
    }

    fn draw(&self, frame: &mut Frame<'_>, area: Rect, first: usize) {
        let block = Block::bordered().title(format!(" {} ", format::headline(&self.status)));
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let paused = format::pause_line(&self.status);
        let [pause, graph, table] = Layout::vertical([
            Constraint::Length(u16::from(paused.is_some())),
            Constraint::Length(u16::from(inner.height > 4) * 2),
            Constraint::Min(0),
        ])
        .areas(inner);
        if let Some(paused) = paused {
            frame.render_widget(Paragraph::new(paused).style(Color::Yellow), pause);
        }
        let columns = graph.width as usize;
        let rates: Vec<u64> =
            self.rates.iter().copied().skip(self.rates.len().saturating_sub(columns)).collect();
        frame.render_widget(Sparkline::default().data(&rates).style(Color::Cyan), graph);
        let transfers = &self.status.transfers;
        // All mounts scroll together; each keeps its last transfer visible.
        let shown = transfers.iter().skip(first.min(transfers.len().saturating_sub(1)));
        let shown: Vec<_> = shown.map(|file| (file.state, cells(file))).collect();
        let [state, file, progress, rate, eta] = head();
        let longest = |head: &str, of: fn(&Cells) -> &str| {
            let cells = shown.iter().map(|(_, cells)| of(cells).width());
            Constraint::Length(cells.chain([head.width()]).max().unwrap_or(0) as u16)
        };
        let widths = [
            longest(&state, |cells| &cells.state),
            Constraint::Fill(2),
            longest(&progress, |cells| &cells.progress),
            longest(&rate, |cells| &cells.rate),
            Constraint::Fill(1),
        ];
        let columns = Layout::horizontal(widths).spacing(COLUMN_SPACING).split(table);
        let path_columns = columns.get(1).map_or(0, |column| usize::from(column.width));
        let rows = shown.into_iter().map(|(stage, cells)| {
            let last = if cells.error.is_empty() { cells.eta } else { cells.error };
            let color = match stage {
                TransferStage::Failed => Color::Red,
                TransferStage::Committing => Color::Green,
                TransferStage::Writing
                | TransferStage::Staged
                | TransferStage::Saved
                | TransferStage::Local
                | TransferStage::Unknown => Color::Reset,
            };
            let path = cut(&cells.path, path_columns);
            Row::new([cells.state, path, cells.progress, cells.rate, last]).style(color)
        });
        let head = Row::new([state, file, progress, rate, format!("{eta}, {}", messages::head_error())]);
        let rows = Table::new(rows, widths).column_spacing(COLUMN_SPACING);
        frame.render_widget(rows.header(head.style(Modifier::DIM)), table);
    }
}

fn key(status: &Status) -> String {
    format!("{} {}", status.mountpoint, status.pid)
}

fn push_bounded<T>(ring: &mut VecDeque<T>, new: impl IntoIterator<Item = T>, max: usize) {
    ring.extend(new);
    while ring.len() > max {
        ring.pop_front();
    }
}

/// The new events of a mount; empty if it no longer answers.
async fn read_events(daemon: &DaemonClient, since: u64) -> Vec<LogEntry> {
    let mut entries = Vec::new();
    let Ok(mut events) = daemon.events(since, false).await else { return entries };
    while let Ok(Some(entry)) = events.next().await {
        entries.push(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::table::tests::busy;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(dashboard: &Dashboard, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| dashboard.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content.chunks(width as usize);
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    fn update(mounts: Vec<(Status, Vec<LogEntry>)>) -> Update {
        Update { mounts, silent: Vec::new() }
    }

    fn dashboard() -> Dashboard {
        let mut dashboard = Dashboard::default();
        let second = Status { mountpoint: "/other".into(), ..Status::default() };
        dashboard.apply(update(vec![(busy(), busy().failures), (second, Vec::new())]));
        dashboard
    }

    #[test]
    fn dashboard_shows_mounts_transfers_and_events() {
        let text = screen(&dashboard(), 120, 40);
        for part in [
            "drive 1 at /mnt  1 file: 33 % of 96 MiB",
            "at /other  everything is on the drive",
            "/movie.mp4",
            "33 % of 96 MiB",
            "16 MiB/s",
            "the drive is full",
            "NOT SAVED /lost",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn narrow_dashboard_keeps_ends_of_names() {
        let mut status = busy();
        status.transfers[0].path = "/a folder with a long name/movie-7.mp4".into();
        let mut dashboard = Dashboard::default();
        dashboard.apply(update(vec![(status, Vec::new())]));
        let text = screen(&dashboard, 80, 20);
        assert!(text.contains("movie-7.mp4 "), "{text}");
    }

    #[test]
    fn dashboard_fits_any_size() {
        for (width, height) in [(1, 1), (10, 3), (40, 10), (300, 100)] {
            screen(&dashboard(), width, height);
        }
    }

    #[test]
    fn dashboard_drops_ended_mounts_and_bounds_scrolling() {
        let mut dashboard = dashboard();
        let down = Event::Key(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE));
        for _ in 0..9 {
            dashboard.scroll(&down);
        }
        let text = screen(&dashboard, 120, 40);
        assert!(
            !text.contains("/movie.mp4") && text.contains("/f "),
            "the last transfer is not visible: {text}"
        );
        let mut fewer = busy();
        fewer.transfers.truncate(1);
        dashboard.apply(update(vec![(fewer, Vec::new())]));
        assert!(screen(&dashboard, 120, 40).contains("/movie.mp4"), "scrolled beyond the end");
        dashboard.apply(Update::default());
        let text = screen(&dashboard, 80, 20);
        assert!(text.contains("no mounted drives") && !text.contains("/mnt"), "{text}");
    }

    #[test]
    fn dashboard_history_is_bounded() {
        let mut dashboard = Dashboard::default();
        for seq in 0..1000 {
            let entry = LogEntry { seq, ..busy().failures.remove(0) };
            dashboard.apply(update(vec![(busy(), vec![entry])]));
        }
        let view = &dashboard.mounts.values().next().unwrap();
        assert_eq!((view.events.len(), view.rates.len()), (EVENTS_MAX, RATES_MAX));
        assert_eq!(view.last_seq, 999);
    }

    #[test]
    fn dashboard_notes_silent_mounts() {
        let mut dashboard = dashboard();
        dashboard.apply(Update { silent: vec!["the mount does not answer".into()], ..Update::default() });
        assert!(screen(&dashboard, 80, 20).contains("the mount does not answer"));
        dashboard.apply_result(Err(Error::new(crate::error::ErrorKind::Io, "no\x1b[2J")));
        assert!(screen(&dashboard, 80, 20).contains("no\\u{1b}[2J"));
    }

    #[tokio::test]
    async fn keys_and_signals_work_while_a_mount_hangs() {
        let (press, mut keys) = mpsc::channel(4);
        let (polled, mut polls) = mpsc::unbounded_channel();
        let hang = |_| {
            polled.send(()).unwrap();
            std::future::pending::<Result<Update>>()
        };
        let (mut hanging, mut drawn) = (dashboard(), Vec::new());
        let watching = watch(
            &mut hanging,
            Duration::from_millis(1),
            hang,
            |dashboard| {
                drawn.push(dashboard.first);
                Ok(())
            },
            &mut keys,
            std::future::pending::<()>(),
        );
        let pressing = async {
            polls.recv().await.unwrap();
            for code in [KeyCode::Down, KeyCode::Char('q')] {
                press.send(Event::Key(KeyEvent::new(code, KeyModifiers::NONE))).await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(watching, pressing);
        ended.unwrap();
        assert_eq!(drawn.last(), Some(&1), "the key had no effect");
        assert!(polls.try_recv().is_err(), "two polls at once");
        let (_press, mut keys) = mpsc::channel(4);
        let stop = std::future::ready(());
        watch(&mut hanging, Duration::from_millis(1), hang, |_| Ok(()), &mut keys, stop).await.unwrap();
    }

    #[test]
    fn q_escape_and_ctrl_c_quit() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(is_quit(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(is_quit(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(is_quit(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!is_quit(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!is_quit(&Event::Resize(1, 1)));
    }
}

//! `pdsfs status --watch` at a terminal: every mount with its transfers, and what happened lately.
//!
//! Drawn from what the mounts answer, as often as they are asked; a mount that goes away goes from the
//! screen too. The terminal is given back as it was, also when something fails.

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

use super::{cells, tail};
use crate::cli::signals::Signals;
use crate::cli::{reach, shown};
use crate::control::client::Daemon;
use crate::control::types::{Happening, LogEntry, Stage, Status};
use crate::error::{Error, Result};

/// Events of a mount that are kept for the screen.
const EVENTS_MAX: usize = 100;
/// Rates of a mount that are kept for the screen.
const RATES_MAX: usize = 200;
/// Share of the height that belongs to what happened.
const EVENTS_PERCENT: u16 = 30;
/// Between the columns of a table.
const COLUMN_SPACING: u16 = 1;
/// How long the thread that reads keys waits before it looks whether it is still needed.
const KEY_WAIT: Duration = Duration::from_millis(100);

/// What the screen shows.
#[derive(Debug, Default)]
struct Dashboard {
    mounts: BTreeMap<String, Shown>,
    /// How far the transfers are scrolled.
    first: usize,
    note: Option<String>,
}

#[derive(Debug, Default)]
struct Shown {
    status: Status,
    rates: VecDeque<u64>,
    events: VecDeque<LogEntry>,
    seen_seq: u64,
}

/// Shows it until q, Escape or Ctrl-C is pressed or a signal comes.
pub(super) async fn run(wanted: Option<&str>, interval: Duration, signals: &mut Signals) -> Result<ExitCode> {
    let mut dashboard = Dashboard::default();
    // A mount that is not there is told before the screen is taken.
    tokio::select! {
        looked = look(wanted, BTreeMap::new()) => dashboard.take(looked?),
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    }
    let failed = |e: std::io::Error| Error::from(e).context("the terminal");
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut keys = Keys::read();
    let outcome = watch(
        &mut dashboard,
        interval,
        |seen| look(wanted, seen),
        |dashboard| terminal.draw(|frame| dashboard.draw(frame)).map(drop).map_err(failed),
        &mut keys.events,
        signals.next(),
    );
    let outcome = outcome.await;
    keys.stop();
    ratatui::restore();
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Looks, draws and does what keys say, until one of them or `stop` ends it. A look may take long: it is waited for
/// beside the keys.
async fn watch<L: Future<Output = Result<Seen>>>(
    dashboard: &mut Dashboard,
    interval: Duration,
    look: impl Fn(BTreeMap<String, u64>) -> L,
    mut draw: impl FnMut(&Dashboard) -> Result<()>,
    keys: &mut mpsc::Receiver<Event>,
    stop: impl Future,
) -> Result<()> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking = std::pin::pin!(None);
    let mut stop = std::pin::pin!(stop);
    loop {
        draw(dashboard)?;
        tokio::select! {
            _ = ticks.tick(), if looking.is_none() => looking.set(Some(look(dashboard.seen()))),
            looked = next(looking.as_mut()) => {
                looking.set(None);
                dashboard.looked(looked);
            }
            key = keys.recv() => match key {
                Some(event) if !ends(&event) => dashboard.scroll(&event),
                _ => return Ok(()),
            },
            _ = &mut stop => return Ok(()),
        }
    }
}

/// The end of what is under way, if something is.
async fn next<F: Future>(running: Pin<&mut Option<F>>) -> F::Output {
    match running.as_pin_mut() {
        Some(running) => running.await,
        None => std::future::pending().await,
    }
}

/// What was found: mounts with their new events, and why nothing is known of others.
#[derive(Debug, Default)]
struct Seen {
    mounts: Vec<(Status, Vec<LogEntry>)>,
    unknown: Vec<String>,
}

/// Asks the mounts. `seen` has the number of the last event that is known of each.
async fn look(wanted: Option<&str>, seen: BTreeMap<String, u64>) -> Result<Seen> {
    let (found, unknown) = reach::mounts_and_unknown(wanted).await?;
    let mut mounts = Vec::new();
    for (daemon, status) in found {
        let since = seen.get(&key(&status)).copied().unwrap_or(0);
        let events = if status.last_seq > since { read_events(&daemon, since).await } else { Vec::new() };
        mounts.push((status, events));
    }
    Ok(Seen { mounts, unknown })
}

/// What is typed, from a thread that may wait.
struct Keys {
    events: mpsc::Receiver<Event>,
    is_over: Arc<AtomicBool>,
}

impl Keys {
    fn read() -> Self {
        let (told, events) = mpsc::channel(16);
        let is_over = Arc::new(AtomicBool::new(false));
        let until = is_over.clone();
        std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let event = match event::poll(KEY_WAIT) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(e) => Err(e),
                };
                let Ok(event) = event else { return };
                if told.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Self { events, is_over }
    }

    fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn pressed(event: &Event) -> Option<&KeyEvent> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => Some(key),
        _ => None,
    }
}

fn ends(event: &Event) -> bool {
    pressed(event).is_some_and(|key| match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    })
}

impl Dashboard {
    /// The number of the last event that is known of each mount.
    fn seen(&self) -> BTreeMap<String, u64> {
        self.mounts.iter().map(|(key, shown)| (key.clone(), shown.seen_seq)).collect()
    }

    fn looked(&mut self, looked: Result<Seen>) {
        match looked {
            Ok(seen) => self.take(seen),
            Err(error) => {
                self.mounts.clear();
                self.note = Some(shown::printable(&error.to_string()));
            }
        }
    }

    fn take(&mut self, seen: Seen) {
        self.note = Some(seen.unknown.join("; ")).filter(|note| !note.is_empty());
        let keys: Vec<_> = seen.mounts.iter().map(|(status, _)| key(status)).collect();
        self.mounts.retain(|key, _| keys.contains(key));
        for (status, events) in seen.mounts {
            let shown = self.mounts.entry(key(&status)).or_default();
            shown.seen_seq = events.last().map_or(shown.seen_seq, |entry| entry.seq);
            keep(&mut shown.events, events, EVENTS_MAX);
            keep(&mut shown.rates, [status.totals.rate_bytes_s], RATES_MAX);
            shown.status = status;
        }
        self.first = self.first.min(self.first_max());
    }

    /// So far is scrolled at most that the last transfer is still seen.
    fn first_max(&self) -> usize {
        let longest = self.mounts.values().map(|shown| shown.status.transfers.len()).max();
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
        let [mounts, events, foot] = Layout::vertical([
            Constraint::Min(3),
            Constraint::Percentage(EVENTS_PERCENT),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let heights = self.mounts.values().map(|shown| Constraint::Fill(1 + shown.weight()));
        for (shown, area) in self.mounts.values().zip(Layout::vertical(heights).split(mounts).iter()) {
            shown.draw(frame, *area, self.first);
        }
        if self.mounts.is_empty() {
            frame.render_widget(Paragraph::new("no drive is mounted by you"), mounts);
        }
        self.draw_events(frame, events);
        let note = self.note.as_deref().unwrap_or("q ends this, the arrow keys scroll; the mounts go on");
        frame.render_widget(Paragraph::new(note).style(Style::new().add_modifier(Modifier::DIM)), foot);
    }

    fn draw_events(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut all: Vec<_> = self.mounts.values().flat_map(|shown| &shown.events).collect();
        all.sort_by_key(|entry| entry.at_ms);
        let rows = area.height.saturating_sub(2) as usize;
        let lines = all.iter().rev().take(rows).map(|entry| {
            let text = format!("{}  {}", shown::moment(entry.at_ms), shown::event(entry));
            let color = match entry.what {
                Happening::Committed => Color::Green,
                Happening::Failed | Happening::AttributesRefused => Color::Red,
                Happening::Warning | Happening::Missed | Happening::Unknown => Color::Yellow,
            };
            Line::styled(text, color)
        });
        let newest_first: Vec<_> = lines.collect();
        frame.render_widget(Paragraph::new(newest_first).block(Block::bordered().title(" lately ")), area);
    }
}

impl Shown {
    fn weight(&self) -> u16 {
        u16::try_from(self.status.transfers.len()).unwrap_or(u16::MAX).min(20)
    }

    fn draw(&self, frame: &mut Frame<'_>, area: Rect, first: usize) {
        let block = Block::bordered().title(format!(" {} ", shown::headline(&self.status)));
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let paused = shown::paused(&self.status);
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
        let widths = [
            Constraint::Length(10),
            Constraint::Fill(2),
            Constraint::Length(20),
            Constraint::Length(14),
            Constraint::Fill(1),
        ];
        let columns = Layout::horizontal(widths).spacing(COLUMN_SPACING).split(table);
        let path_columns = columns.get(1).map_or(0, |column| usize::from(column.width));
        let transfers = &self.status.transfers;
        // Mounts share how far is scrolled; each shows its last transfer at least.
        let rows = transfers.iter().skip(first.min(transfers.len().saturating_sub(1))).map(|file| {
            let cells = cells(file);
            let last = if cells.error.is_empty() { cells.eta } else { cells.error };
            let color = match file.state {
                Stage::Failed => Color::Red,
                Stage::Committing => Color::Green,
                Stage::Writing | Stage::Staged | Stage::Saved | Stage::Local | Stage::Unknown => Color::Reset,
            };
            let path = tail(cells.path, path_columns);
            Row::new([cells.state.to_owned(), path, cells.progress, cells.rate, last]).style(color)
        });
        let head = Row::new(["STATE", "FILE", "PROGRESS", "RATE", "ETA, ERROR"]);
        let rows = Table::new(rows, widths).column_spacing(COLUMN_SPACING);
        frame.render_widget(rows.header(head.style(Modifier::DIM)), table);
    }
}

fn key(status: &Status) -> String {
    format!("{} {}", status.mountpoint, status.pid)
}

fn keep<T>(ring: &mut VecDeque<T>, new: impl IntoIterator<Item = T>, max: usize) {
    ring.extend(new);
    while ring.len() > max {
        ring.pop_front();
    }
}

/// The events of a mount that has answered just now; none where it does not any more.
async fn read_events(daemon: &Daemon, since: u64) -> Vec<LogEntry> {
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
    use crate::cli::status::tests::busy;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn screen(dashboard: &Dashboard, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| dashboard.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content.chunks(width as usize);
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>() + "\n").collect()
    }

    fn seen(mounts: Vec<(Status, Vec<LogEntry>)>) -> Seen {
        Seen { mounts, unknown: Vec::new() }
    }

    fn dashboard() -> Dashboard {
        let mut dashboard = Dashboard::default();
        let second = Status { mountpoint: "/other".into(), ..Status::default() };
        dashboard.take(seen(vec![(busy(), busy().failures), (second, Vec::new())]));
        dashboard
    }

    #[test]
    fn it_shows_every_mount_its_transfers_and_what_happened() {
        let text = screen(&dashboard(), 120, 40);
        for part in [
            "drive 1 at /mnt  1 file, 64.00 MiB to go",
            "at /other  everything is on the drive",
            "/movie.mp4",
            "33 % of 96.00 MiB",
            "16.00 MiB/s",
            "the drive is full",
            "NOT SAVED     /lost",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }

    #[test]
    fn a_narrow_screen_shows_the_ends_of_names() {
        let mut status = busy();
        status.transfers[0].path = "/a folder with a long name/movie-7.mp4".into();
        let mut dashboard = Dashboard::default();
        dashboard.take(seen(vec![(status, Vec::new())]));
        let text = screen(&dashboard, 80, 20);
        assert!(text.contains("movie-7.mp4 "), "{text}");
    }

    #[test]
    fn it_fits_any_size() {
        for (width, height) in [(1, 1), (10, 3), (40, 10), (300, 100)] {
            screen(&dashboard(), width, height);
        }
    }

    #[test]
    fn a_mount_that_is_gone_is_not_shown_and_scrolling_has_an_end() {
        let mut dashboard = dashboard();
        let down = Event::Key(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE));
        for _ in 0..9 {
            dashboard.scroll(&down);
        }
        let text = screen(&dashboard, 120, 40);
        assert!(!text.contains("/movie.mp4") && text.contains("/f "), "the last one is not seen: {text}");
        let mut fewer = busy();
        fewer.transfers.truncate(1);
        dashboard.take(seen(vec![(fewer, Vec::new())]));
        assert!(screen(&dashboard, 120, 40).contains("/movie.mp4"), "it is scrolled beyond the end");
        dashboard.take(Seen::default());
        let text = screen(&dashboard, 80, 20);
        assert!(text.contains("no drive is mounted") && !text.contains("/mnt"), "{text}");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut dashboard = Dashboard::default();
        for seq in 0..1000 {
            let entry = LogEntry { seq, ..busy().failures.remove(0) };
            dashboard.take(seen(vec![(busy(), vec![entry])]));
        }
        let shown = &dashboard.mounts.values().next().unwrap();
        assert_eq!((shown.events.len(), shown.rates.len()), (EVENTS_MAX, RATES_MAX));
        assert_eq!(shown.seen_seq, 999);
    }

    #[test]
    fn who_does_not_answer_is_told_below() {
        let mut dashboard = dashboard();
        dashboard.take(Seen { unknown: vec!["the mount does not answer".into()], ..Seen::default() });
        assert!(screen(&dashboard, 80, 20).contains("the mount does not answer"));
        dashboard.looked(Err(Error::new(crate::ErrorKind::Io, "no\x1b[2J")));
        assert!(screen(&dashboard, 80, 20).contains("no\\u{1b}[2J"));
    }

    #[tokio::test]
    async fn keys_and_signals_are_heard_while_a_mount_hangs() {
        let (press, mut keys) = mpsc::channel(4);
        let (looked, mut looks) = mpsc::unbounded_channel();
        let hang = |_| {
            looked.send(()).unwrap();
            std::future::pending::<Result<Seen>>()
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
            looks.recv().await.unwrap();
            for code in [KeyCode::Down, KeyCode::Char('q')] {
                press.send(Event::Key(KeyEvent::new(code, KeyModifiers::NONE))).await.unwrap();
            }
        };
        let (ended, ()) = tokio::join!(watching, pressing);
        ended.unwrap();
        assert_eq!(drawn.last(), Some(&1), "a key was not seen");
        assert!(looks.try_recv().is_err(), "a second look was begun beside the first");
        let (_press, mut keys) = mpsc::channel(4);
        let stop = std::future::ready(());
        watch(&mut hanging, Duration::from_millis(1), hang, |_| Ok(()), &mut keys, stop).await.unwrap();
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(ends(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(ends(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(ends(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!ends(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!ends(&Event::Resize(1, 1)));
    }
}

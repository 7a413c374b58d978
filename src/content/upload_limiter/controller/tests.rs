//! The controller in a closed loop: a writer that refills its lead after each burst of ended PUTs, and PUTs that
//! share a line.

use super::*;

const MIB: f64 = (1 << 20) as f64;
const PART: u64 = 8 << 20;

/// Bytes per second, of each connection and of all together.
#[derive(Clone, Copy)]
struct Line {
    connection: f64,
    total: f64,
}

impl Line {
    fn of_connections(mib: f64) -> Self {
        Self { connection: mib * MIB, total: f64::INFINITY }
    }

    fn shared(mib: f64) -> Self {
        Self { connection: f64::INFINITY, total: mib * MIB }
    }
}

struct Put {
    bytes_left: f64,
    /// The share of this connection, relative to others.
    weight: f64,
    start: PutStart,
}

struct Upload {
    controller: ConcurrencyController,
    began: Instant,
    seconds: f64,
    puts: Vec<Put>,
    queued: usize,
    ahead: usize,
    stored: usize,
    /// Bytes per second of the writer.
    writer: f64,
    /// Bytes that the filling part still needs; `None` before the next part begins.
    unwritten: Option<f64>,
    /// Largest relative deviation of a connection from the others.
    noise: f64,
    random: u64,
}

impl Upload {
    fn new(part_bytes: u64) -> Self {
        Self {
            controller: ConcurrencyController::new(32, part_bytes),
            began: Instant::now(),
            seconds: 0.0,
            puts: Vec::new(),
            queued: 0,
            ahead: 0,
            stored: 0,
            writer: f64::INFINITY,
            unwritten: None,
            noise: 0.0,
            random: 1,
        }
    }

    fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    fn now(&self) -> Instant {
        self.began + Duration::from_secs_f64(self.seconds)
    }

    fn weight(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let unit = (self.random >> 33) as f64 / f64::from(1_u32 << 31);
        1.0 + self.noise * (2.0 * unit - 1.0)
    }

    fn refill(&mut self) {
        loop {
            if self.unwritten.is_none() && self.ahead < self.controller.parts_ahead_max() {
                self.unwritten = Some(self.controller.part_bytes as f64);
            }
            if self.unwritten.take_if(|left| *left < 0.5 || self.writer.is_infinite()).is_none() {
                break;
            }
            self.ahead += 1;
            self.queued += 1;
        }
        self.begin_queued();
    }

    fn begin_queued(&mut self) {
        while self.queued > 0 && self.puts.len() < self.controller.limit() {
            self.queued -= 1;
            let (weight, start) = (self.weight(), self.controller.started(self.now()));
            self.puts.push(Put { bytes_left: self.controller.part_bytes as f64, weight, start });
        }
    }

    /// Runs for a time. Calls `check` after each stored part.
    fn run(&mut self, line: Line, seconds: f64, mut check: impl FnMut(&Self)) {
        let end = self.seconds + seconds;
        self.refill();
        while self.seconds < end {
            let weights: f64 = self.puts.iter().map(|put| put.weight).sum();
            let rate = |put: &Put| (line.connection * put.weight).min(line.total * put.weight / weights);
            let next = self.puts.iter().map(|put| put.bytes_left / rate(put)).fold(f64::INFINITY, f64::min);
            let written = self.unwritten.map_or(f64::INFINITY, |left| left / self.writer);
            let step = next.min(written).min(end - self.seconds);
            self.seconds += step;
            if let Some(left) = &mut self.unwritten {
                *left -= step * self.writer;
            }
            for put in &mut self.puts {
                put.bytes_left -= step * rate(put);
            }
            while let Some(index) = self.puts.iter().position(|put| put.bytes_left < 0.5) {
                let (put, now) = (self.puts.remove(index), self.now());
                self.controller.finished(now, put.start, self.controller.part_bytes);
                self.ahead -= 1;
                self.stored += 1;
                self.begin_queued();
                check(self);
            }
            self.refill();
        }
    }

    fn lead_bytes(&self) -> f64 {
        self.ahead as f64 * self.controller.part_bytes as f64
    }
}

#[test]
fn slow_connections_reach_the_full_limit() {
    for (mib, noise) in [(0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (2.5, 0.0), (3.0, 0.3), (4.0, 0.0)] {
        let mut upload = Upload::new(PART).with_noise(noise);
        let put_seconds = 8.0 / mib;
        upload.run(Line::of_connections(mib), 8.0 * put_seconds, |_| {});
        let before = upload.stored;
        upload.run(Line::of_connections(mib), 10.0 * put_seconds, |_| {});
        let in_flight = (upload.stored - before) as f64 / 10.0;
        assert!(in_flight > 26.0, "{in_flight} in flight at {mib} MiB/s, noise {noise}");
    }
}

#[test]
fn limit_triples_with_each_round_of_a_burst() {
    let mut upload = Upload::new(PART);
    upload.run(Line::of_connections(8.0), 2.1, |_| {});
    assert_eq!(upload.controller.limit(), 32, "after two rounds of one second");
}

#[test]
fn small_parts_start_with_all_connections() {
    let mut upload = Upload::new(128 << 10);
    let mut took = f64::INFINITY;
    upload.run(Line::of_connections(1.0 / 32.0), 20.0, |upload| {
        if upload.stored >= 64 {
            took = took.min(upload.seconds);
        }
    });
    assert!(took < 12.5, "{took}");
}

#[test]
fn slow_line_bounds_the_lead() {
    for mib in [0.5, 2.0, 5.0, 10.0, 20.0] {
        let mut upload = Upload::new(PART);
        let lead_max = (mib * MIB * WRITER_LEAD.as_secs_f64()).max(2.0 * PART as f64);
        let start_lead = 4.0 * PART as f64;
        upload.run(Line::shared(mib), 400.0 / mib, |upload| {
            let bound = if upload.stored < 8 { lead_max.max(start_lead) } else { lead_max };
            assert!(upload.lead_bytes() <= bound, "{} parts of {mib} MiB/s", upload.ahead);
        });
        let rate = upload.stored as f64 * PART as f64 / upload.seconds;
        assert!(rate > 0.85 * mib * MIB, "{rate} of {mib} MiB/s");
    }
}

#[test]
fn slow_writer_fills_a_part_while_another_is_sent() {
    for (writer, line) in [(0.4, 0.5), (2.5, 4.0), (3.9, 4.0), (4.0, 8.0)] {
        let mut upload = Upload { writer: writer * MIB, ..Upload::new(PART) };
        upload.run(Line::shared(line), 1600.0 / writer, |_| {});
        let rate = upload.stored as f64 * PART as f64 / upload.seconds;
        assert!(rate > 0.95 * writer * MIB, "{} MiB/s of {writer} over {line}", rate / MIB);
    }
}

#[test]
fn unequal_shares_do_not_loosen_the_lead() {
    let (mut sum, mut count) = (0, 0);
    let mut upload = Upload::new(PART).with_noise(0.5);
    upload.run(Line::shared(10.0), 400.0, |upload| {
        assert!(upload.ahead <= 12, "{}", upload.ahead);
        (sum, count) = (sum + upload.ahead, count + 1);
    });
    let mean = f64::from(sum as u32) / f64::from(count);
    assert!(mean <= 4.0, "{mean} parts ahead in the mean");
}

#[test]
fn changed_line_is_followed() {
    let mut upload = Upload::new(PART);
    upload.run(Line::of_connections(1.0), 100.0, |_| {});
    assert_eq!(upload.puts.len(), 32);
    // What was accepted before has to leave first: 40 parts at 4 MiB/s.
    upload.run(Line::shared(4.0), 200.0, |_| {});
    assert!(upload.ahead <= 2, "{} parts ahead", upload.ahead);
    upload.run(Line::of_connections(1.2), 200.0, |_| {});
    assert_eq!(upload.puts.len(), 32);
}

/// The first megabytes of many lines are fast.
#[test]
fn quick_start_does_not_hold_the_limit_down() {
    let mut upload = Upload::new(PART);
    upload.run(Line::shared(100.0), 2.0, |_| {});
    upload.run(Line::of_connections(1.0), 80.0, |_| {});
    assert_eq!(upload.puts.len(), 32);
    let mut upload = Upload::new(PART);
    upload.run(Line::shared(100.0), 2.0, |_| {});
    upload.run(Line::shared(1.0), 400.0, |_| {});
    assert!(upload.ahead <= 2, "{} parts ahead", upload.ahead);
}

/// 8 connections of 50 MiB/s fill the line; more only queue.
#[test]
fn knee_of_a_fast_line_is_found() {
    for noise in [0.0, 0.3] {
        let mut upload = Upload::new(PART).with_noise(noise);
        upload.run(Line { connection: 50.0 * MIB, total: 400.0 * MIB }, 20.0, |_| {});
        let rate = upload.stored as f64 * PART as f64 / upload.seconds;
        assert!(rate > 370.0 * MIB, "{} MiB/s", rate / MIB);
    }
}

#[test]
fn shared_bottleneck_keeps_the_limit_low() {
    let mut upload = Upload::new(PART);
    upload.run(Line::shared(800.0), 2.0, |upload| {
        assert!(upload.controller.limit() <= 12, "{}", upload.controller.limit());
    });
}

#[test]
fn throttling_halves_the_limit() {
    let mut upload = Upload::new(PART);
    upload.run(Line::of_connections(50.0), 10.0, |_| {});
    assert_eq!(upload.controller.limit(), 32);
    for limit in [16, 8, LIMIT_MIN, LIMIT_MIN] {
        upload.seconds += 1.0;
        let start = upload.controller.started(upload.now());
        upload.seconds += 1.0;
        for _ in 0..3 {
            upload.controller.throttled(upload.now(), start);
        }
        assert_eq!(upload.controller.limit(), limit);
    }
}

/// Parts that share a connection end almost at once: their time together counts.
#[test]
fn burst_does_not_inflate_the_rate() {
    let mut controller = ConcurrencyController::new(32, PART);
    let (start, mut now) = (Instant::now(), Instant::now());
    for round in 0..5_u32 {
        let starts: Vec<_> = (0..4).map(|_| controller.started(now)).collect();
        for (part, begun) in starts.into_iter().enumerate() {
            now = start + Duration::from_millis(3200) * (round + 1) + Duration::from_millis(part as u64 * 30);
            controller.finished(now, begun, PART);
            // 10 MiB/s.
            assert!((1..=3).contains(&controller.parts_ahead_max()), "{round} {part}");
        }
    }
}

#[test]
fn small_files_do_not_set_the_rate() {
    let mut controller = ConcurrencyController::new(32, PART);
    let now = Instant::now();
    let start = controller.started(now);
    controller.finished(now + Duration::from_millis(20), start, 100);
    assert_eq!(controller.parts_ahead_max(), LIMIT_MIN);
}

#[test]
fn rate_is_remembered_over_a_pause() {
    let mut upload = Upload::new(PART);
    upload.run(Line::shared(2.0), 80.0, |_| {});
    for _ in 0..upload.puts.len() {
        upload.controller.abandoned(upload.now());
    }
    upload.seconds += 3600.0;
    upload.controller.started(upload.now());
    assert_eq!(upload.controller.parts_ahead_max(), PARTS_AHEAD_MIN);
}

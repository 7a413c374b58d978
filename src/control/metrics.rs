//! The figures of a mount for Prometheus, at `http://ADDRESS/metrics`; off unless an address is given.
//!
//! Figures are read when somebody asks, so they cost nothing otherwise. None of them names a file or the drive.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_io_timeout::TimeoutStream;

use super::report::Served;
use super::types::{Stage, Status, Totals};
use crate::error::{Error, ErrorKind, Result};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;
/// How long the head of a request may take to come, and an answer to be read.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the format is called.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A listener that has its address, for which nobody answers yet.
#[derive(Debug)]
pub struct MetricsListener(TcpListener);

impl MetricsListener {
    /// Takes the address.
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        listener.map(Self).map_err(|e| Error::from(e).context(format!("metrics at {address}")))
    }

    /// Where it listens.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Answers from now on, until the task is aborted.
    pub fn serve(self, served: Arc<Served>) -> JoinHandle<()> {
        tokio::spawn(accept(self.0, served))
    }
}

async fn accept(listener: TcpListener, served: Arc<Served>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Who comes while all places are taken is cut off, and may come again.
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let served = served.clone();
        tokio::spawn(async move {
            answer(stream, served).await;
            drop(place);
        });
    }
}

async fn answer(stream: TcpStream, served: Arc<Served>) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WAIT_MAX));
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.method(), request.uri().path(), &served);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(WAIT_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

fn respond(method: &Method, path: &str, served: &Arc<Served>) -> Response<Full<Bytes>> {
    let (status, body) = match (method, path) {
        (&Method::GET, "/metrics") => match figures(served) {
            Ok(text) => (StatusCode::OK, text),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        },
        _ => (StatusCode::NOT_FOUND, "the figures are at /metrics\n".to_owned()),
    };
    let kind = if status == StatusCode::OK { OPEN_METRICS } else { "text/plain; charset=utf-8" };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// All figures as text.
fn figures(served: &Arc<Served>) -> std::result::Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pdsfs");
    registry.register_collector(Box::new(Figures(served.clone())));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Figures(Arc<Served>);

impl Collector for Figures {
    fn encode(&self, to: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(to);
        let status = self.0.status();
        self.sums(&mut page, &status.totals)?;
        self.now(&mut page, &status)
    }
}

impl Figures {
    /// What only grows. All labels are words of this program, so none needs to be escaped.
    fn sums(&self, page: &mut Page<'_>, totals: &Totals) -> fmt::Result {
        let committed = [
            ("uploaded", totals.files_uploaded),
            ("instant", totals.files_instant),
            ("unchanged", totals.files_unchanged),
        ];
        page.counters("committed_files", "Files that came to the drive, by how", "how", committed)?;
        let counted = self.0.progress.failures_by_kind();
        // Those that did not happen too: what appears with its first failure has no increase to be seen.
        let failed = ErrorKind::ALL.into_iter().map(|kind| {
            let count = counted.iter().find(|(counted, _)| *counted == kind).map_or(0, |(_, count)| *count);
            (snake_case(kind), count)
        });
        page.counters("failed_files", "Files that could not be saved, by why", "kind", failed)?;
        let abandoned = totals.files_abandoned;
        page.counter("abandoned_files", "Files that were deleted before they were saved", None, abandoned)?;
        let bytes = Some(&Unit::Bytes);
        page.counter("committed", "Bytes of committed files", bytes, totals.bytes_committed)?;
        page.counter("written", "Bytes that programs have written", bytes, totals.bytes_written)?;
        page.counter("acknowledged", "Bytes in parts that the drive has", bytes, totals.bytes_acked)
    }

    /// What is so at this moment.
    fn now(&self, page: &mut Page<'_>, status: &Status) -> fmt::Result {
        let (pending, load) = (&status.pending, self.0.vfs.load());
        // The status names only so many of them.
        let seen = self.0.vfs.seen_files();
        let of = |stage: Stage| {
            let count = seen.iter().filter(|file| file.sight.stage == stage).count() as u64;
            (stage.name(), count)
        };
        let transfers = [Stage::Writing, Stage::Staged, Stage::Committing, Stage::Failed].map(of);
        page.gauges("transfers", "Files that are not on the drive yet, by state", "state", transfers)?;
        let views = seen.iter().filter_map(|file| file.sight.transfer.as_ref());
        let parts = views.map(|view| u64::from(view.parts_in_flight)).sum();
        let parts_max = load.parts_in_flight_max as u64;
        let buffer_max = self.0.config.buffer_bytes_max;
        let is_paused = u64::from(status.paused.is_some());
        let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        for (name, help, unit, value) in [
            ("lag", "Bytes that were written and that the drive does not have", bytes, pending.bytes),
            ("parts_in_flight", "Parts that are being sent", None, parts),
            ("pending_attributes", "Objects with attributes to be told", None, pending.attributes),
            (
                "refused_attributes",
                "Objects whose attributes the drive does not keep",
                None,
                pending.attributes_refused,
            ),
            (
                "rate_bytes_per_second",
                "How fast parts are acknowledged, lately",
                None,
                status.totals.rate_bytes_s,
            ),
            ("buffer", "Bytes of write buffers in use", bytes, load.buffer_bytes),
            ("buffer_max", "Bytes that write buffers may take", bytes, buffer_max),
            ("local_copies", "Bytes of local copies", bytes, load.copy_bytes),
            ("parts_in_flight_max", "Parts that may be sent at once now", None, parts_max),
            ("paused", "Whether nothing is sent for want of a network or a login", None, is_paused),
            ("mount_time", "When the drive was mounted, since 1970", seconds, status.mounted_at_ms / 1000),
        ] {
            page.gauge(name, help, unit, value)?;
        }
        Ok(())
    }
}

/// Where figures are written, one metric after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Counter)?)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        gauge(value).encode(self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?)
    }

    fn counters<L: AsRef<str>>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (of, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, of.as_ref())])?)?;
        }
        Ok(())
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: [(&str, u64); N],
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (of, value) in values {
            gauge(value).encode(family.encode_family(&[(label, of)])?)?;
        }
        Ok(())
    }
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// `QuotaExceeded` is `quota_exceeded`.
fn snake_case(kind: ErrorKind) -> String {
    let mut out = String::new();
    for c in format!("{kind:?}").chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_that_labels_have() {
        assert_eq!(snake_case(ErrorKind::QuotaExceeded), "quota_exceeded");
        assert_eq!(snake_case(ErrorKind::Io), "io");
    }
}

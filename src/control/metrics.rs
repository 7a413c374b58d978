//! Prometheus metrics of a mount, at `http://ADDRESS/metrics`. Off unless an address is set.
//!
//! A server on the loopback answers only requests whose `Host` is an address or `localhost`: a web page of another
//! machine could read the figures by DNS rebinding. Values are collected for each request and cost nothing otherwise. No metric names a file or the drive.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::http::{self, Limits};
use super::mount_handle::MountHandle;
use super::types::{Status, Totals, TransferStage};
use crate::error::{Error, ErrorKind, Result};
use crate::host_header;

const CONNECTIONS_MAX: usize = 16;
const LIMITS: Limits = Limits { head_max: Duration::from_secs(10), write_max: Duration::from_secs(10) };
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A bound listener that does not answer yet.
#[derive(Debug)]
pub struct MetricsListener(TcpListener);

impl MetricsListener {
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await;
        let context =
            || format!("cannot listen for metrics at {address} (choose another address in metrics_listen)");
        listener.map(Self).map_err(|e| Error::from(e).context(context()))
    }

    /// The bound address. It differs from the one in [`Self::bind`] if that had port 0.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Answers until the task is aborted.
    pub fn serve(self, mount: Arc<MountHandle>) -> JoinHandle<()> {
        let listener = Arc::new(self.0);
        let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        tokio::spawn(http::accept(
            "metrics",
            move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream),
            permits,
            |_| true,
            move |stream| {
                let mount = mount.clone();
                http::serve(stream, LIMITS, move |request: Request<Incoming>| {
                    let is_admitted = !is_local || has_literal_host(request.headers());
                    std::future::ready(respond(&request, is_admitted, &mount))
                })
            },
        ))
    }
}

fn has_literal_host(headers: &HeaderMap) -> bool {
    // A client without the header is no browser.
    !headers.contains_key(HOST)
        || host_header::authority(headers).is_some_and(|host| host_header::is_literal(&host))
}

fn respond<B>(request: &Request<B>, is_admitted: bool, mount: &Arc<MountHandle>) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        _ if !is_admitted => {
            (StatusCode::FORBIDDEN, "use the address of this machine, or localhost, in the URL\n".to_owned())
        }
        (&Method::GET, "/metrics") => match encode_metrics(mount) {
            Ok(text) => (StatusCode::OK, text),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        },
        _ => (StatusCode::NOT_FOUND, "the metrics are at /metrics\n".to_owned()),
    };
    let content_type = if status == StatusCode::OK { OPEN_METRICS } else { "text/plain; charset=utf-8" };
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn encode_metrics(mount: &Arc<MountHandle>) -> std::result::Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("pdsfs");
    registry.register_collector(Box::new(MountCollector(mount.clone())));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct MountCollector(Arc<MountHandle>);

impl Collector for MountCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = MetricsEncoder(encoder);
        let status = self.0.status();
        self.encode_counters(&mut encoder, &status.totals)?;
        self.encode_gauges(&mut encoder, &status)
    }
}

impl MountCollector {
    /// Labels are words of this program, so they need no escaping.
    fn encode_counters(&self, to: &mut MetricsEncoder<'_>, totals: &Totals) -> fmt::Result {
        let committed = [
            ("uploaded", totals.files_uploaded),
            ("instant", totals.files_instant),
            ("unchanged", totals.files_unchanged),
        ];
        to.counters("committed_files", "Files committed to the drive, by method", "how", committed)?;
        let counted = self.0.progress.failures_by_kind();
        // Zeros are exported too: a counter that appears with its first failure shows no increase.
        let failed = ErrorKind::ALL.into_iter().map(|kind| {
            let count = counted.iter().find(|(counted, _)| *counted == kind).map_or(0, |(_, count)| *count);
            (snake_case(kind), count)
        });
        to.counters("failed_files", "Files that could not be saved, by kind of error", "kind", failed)?;
        let abandoned = totals.files_abandoned;
        to.counter("abandoned_files", "Files deleted before they were committed", None, abandoned)?;
        let bytes = Some(&Unit::Bytes);
        to.counter("committed", "Bytes of committed files", bytes, totals.bytes_committed)?;
        to.counter("written", "Bytes written by programs", bytes, totals.bytes_written)?;
        to.counter(
            "acknowledged",
            "Bytes of parts that the drive has acknowledged",
            bytes,
            totals.bytes_acked,
        )
    }

    fn encode_gauges(&self, to: &mut MetricsEncoder<'_>, status: &Status) -> fmt::Result {
        let (pending, usage) = (&status.pending, self.0.vfs.resource_usage());
        // The list in the status is truncated.
        let files = self.0.vfs.unsaved_files();
        let count = |stage: TransferStage| {
            let count =
                files.iter().filter(|file| TransferStage::from(file.status.stage) == stage).count() as u64;
            (stage.name(), count)
        };
        let stages =
            [TransferStage::Writing, TransferStage::Staged, TransferStage::Committing, TransferStage::Failed];
        to.gauges("transfers", "Unsaved files, by state", "state", stages.map(count))?;
        let views = files.iter().filter_map(|file| file.status.transfer.as_ref());
        let parts = views.map(|view| u64::from(view.parts_in_flight)).sum();
        let parts_max = usage.parts_in_flight_max as u64;
        let buffer_max = self.0.config.options.buffer_size;
        let is_paused = u64::from(status.paused.is_some());
        let rate = status.totals.rate_bytes_s;
        let refused = pending.attributes_refused;
        let in_flight = status.totals.bytes_sent.saturating_sub(status.totals.bytes_acked);
        let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        for (name, help, unit, value) in [
            ("lag", "Written bytes that the drive has not acknowledged", bytes, pending.bytes),
            ("parts_in_flight", "Parts being sent", None, parts),
            (
                "failures",
                "Files that could not be saved, and were not saved since",
                None,
                pending.files_failed,
            ),
            ("pending_attributes", "Objects with unsaved attributes", None, pending.attributes),
            ("refused_attributes", "Objects whose attributes the drive refused", None, refused),
            ("in_flight", "Bytes that were sent and not acknowledged yet", bytes, in_flight),
            ("waiting", "Written bytes that were not sent yet", bytes, pending.bytes_waiting),
            ("rate_bytes_per_second", "Current rate of sent bytes", None, rate),
            ("buffer", "Bytes of write buffers in use", bytes, usage.buffer_bytes),
            ("buffer_max", "Limit on the bytes of write buffers", bytes, buffer_max),
            ("local_copies", "Bytes of staged and cached files", bytes, usage.copy_bytes),
            ("parts_in_flight_max", "Current limit on parts being sent", None, parts_max),
            ("paused", "1 while uploads wait for the network or a login", None, is_paused),
            ("mount_time", "Time of the mount, since 1970", seconds, status.mounted_at_ms / 1000),
        ] {
            to.gauge(name, help, unit, value)?;
        }
        Ok(())
    }
}

/// Encodes one metric after the other.
struct MetricsEncoder<'a>(DescriptorEncoder<'a>);

impl MetricsEncoder<'_> {
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
        for (label_value, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&[(label, label_value.as_ref())])?)?;
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
        for (label_value, value) in values {
            gauge(value).encode(family.encode_family(&[(label, label_value)])?)?;
        }
        Ok(())
    }
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

/// `QuotaExceeded` becomes `quota_exceeded`.
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
    fn labels_of_error_kinds_are_snake_case() {
        assert_eq!(snake_case(ErrorKind::QuotaExceeded), "quota_exceeded");
        assert_eq!(snake_case(ErrorKind::Io), "io");
    }
}

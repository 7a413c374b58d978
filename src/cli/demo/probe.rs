//! Asks the embedded server for its open uploads: `GET /_pdsfs/uploads`.
//!
//! The call is not part of the PDS API and therefore not in `pds`.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;
use crate::units::exact_duration;

const RESPONSE_BYTES_MAX: usize = 4 << 20;
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(10);

/// An upload session that is not complete.
#[derive(Debug, Deserialize)]
pub(super) struct UploadStatus {
    /// `None` for a new revision of an existing file.
    pub(super) name: Option<String>,
    pub(super) parts: Vec<PartStatus>,
}

/// A part that the server has stored.
#[derive(Debug, Deserialize)]
pub(super) struct PartStatus {
    /// In bytes.
    pub(super) part_size: u64,
}

/// The open uploads of the server at `base`.
pub(super) async fn open_uploads(base: &Url, token: &Secret<String>) -> Result<Vec<UploadStatus>> {
    let uploads = timeout(RESPONSE_TIME_MAX, get(base, token)).await.map_err(|_| {
        let limit = exact_duration(RESPONSE_TIME_MAX);
        Error::new(ErrorKind::Timeout, format!("no answer within {limit}"))
    });
    uploads.flatten().map_err(|e| e.context("asking the server for its open uploads"))
}

async fn get(base: &Url, token: &Secret<String>) -> Result<Vec<UploadStatus>> {
    let protocol = |e: hyper::Error| Error::from_source(ErrorKind::Protocol, e);
    let host = base.host_str().unwrap_or("127.0.0.1");
    let port = base.port_or_known_default().unwrap_or(80);
    let stream = TcpStream::connect((host, port)).await?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
    // Ends when `requests` is dropped. A broken connection is reported by the request.
    tokio::spawn(connection);
    let request = Request::get("/_pdsfs/uploads")
        .header(HOST, format!("{host}:{port}"))
        .header(AUTHORIZATION, format!("Bearer {}", token.expose()))
        .body(Empty::<Bytes>::new())
        .map_err(|e| Error::from_source(ErrorKind::Invalid, e))?;
    let response = requests.send_request(request).await.map_err(protocol)?;
    if response.status() != StatusCode::OK {
        return Err(Error::new(ErrorKind::Protocol, format!("HTTP status {}", response.status())));
    }
    let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
    let body = body.map_err(|e| Error::new(ErrorKind::Protocol, e.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|e| Error::from_source(ErrorKind::Protocol, e))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends `response` to one request. Returns the outcome and the request.
    async fn ask(response: &'static str) -> (Result<Vec<UploadStatus>>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let uploads = open_uploads(&base, &Secret::new("tok".into())).await;
        (uploads, server.await.unwrap())
    }

    #[tokio::test]
    async fn open_uploads_are_parsed() {
        let (uploads, request) = ask(concat!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
            r#"[{"drive_id":"1","file_id":"f","upload_id":"U","name":"a","parallel_upload":true,"#,
            r#""parts":[{"part_number":2,"part_size":64}]}]"#
        ))
        .await;
        let uploads = uploads.unwrap();
        let part = &uploads[0].parts[0];
        assert_eq!((uploads[0].name.as_deref(), part.part_size), (Some("a"), 64));
        assert!(request.starts_with("GET /_pdsfs/uploads HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nauthorization: Bearer tok\r\n"), "{request}");
    }

    #[tokio::test]
    async fn refusals_and_malformed_answers_are_errors() {
        for response in [
            "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>",
            "no HTTP\r\n\r\n",
        ] {
            assert!(ask(response).await.0.is_err(), "{response}");
        }
    }
}

//! Asks the embedded server which parts of open uploads it already has.
//!
//! This is not part of the drive's API, so it does not belong to `pds`: one request to a server of
//! our own on the loopback interface. HTTP/1.0, so that the answer is neither chunked nor kept alive.

use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Secret;

/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Longest wait for the answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// An upload that is not complete, as `GET /_pdsfs/uploads` gives it.
#[derive(Debug, Deserialize)]
pub(super) struct OpenUpload {
    /// The name of a new file.
    pub(super) name: Option<String>,
    /// What has arrived.
    pub(super) parts: Vec<ArrivedPart>,
}

/// A part that the server has.
#[derive(Debug, Deserialize)]
pub(super) struct ArrivedPart {
    /// Its size in bytes.
    pub(super) part_size: u64,
}

/// The open uploads of the server at `base`.
pub(super) async fn open_uploads(base: &Url, token: &Secret<String>) -> Result<Vec<OpenUpload>> {
    let answer = timeout(ANSWER_MAX, ask(base, token))
        .await
        .map_err(|_| Error::new(ErrorKind::Timeout, "the server did not list its open uploads in time"))??;
    parse(&answer)
}

async fn ask(base: &Url, token: &Secret<String>) -> Result<Vec<u8>> {
    let host = base.host_str().unwrap_or("127.0.0.1");
    let port = base.port_or_known_default().unwrap_or(80);
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = format!(
        "GET /_pdsfs/uploads HTTP/1.0\r\nHost: {host}:{port}\r\nAuthorization: Bearer {}\r\n\r\n",
        token.expose()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<Vec<OpenUpload>> {
    let text = String::from_utf8_lossy(answer);
    let protocol = |what: String| Error::new(ErrorKind::Protocol, format!("list of open uploads: {what}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| protocol("no HTTP answer".into()))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(protocol(format!("the server answered {status:?}")));
    }
    serde_json::from_str(body).map_err(|e| protocol(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = concat!(
        "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n",
        r#"[{"drive_id":"1","file_id":"f","upload_id":"U","name":"a","parallel_upload":true,"#,
        r#""parts":[{"part_number":2,"part_size":64}]}]"#
    );

    #[test]
    fn answers_are_read_and_refusals_are_errors() {
        let uploads = parse(ANSWER.as_bytes()).unwrap();
        let part = &uploads[0].parts[0];
        assert_eq!((uploads[0].name.as_deref(), part.part_size), (Some("a"), 64));
        assert!(parse(b"HTTP/1.0 401 Unauthorized\r\n\r\n{}").is_err());
        assert!(parse(b"HTTP/1.0 200 OK\r\n\r\n<html>").is_err());
        assert!(parse(b"").is_err());
    }

    #[tokio::test]
    async fn the_token_goes_with_the_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(ANSWER.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        let uploads = open_uploads(&base, &Secret::new("tok".into())).await.unwrap();
        assert_eq!(uploads.len(), 1);
        let request = server.await.unwrap();
        assert!(request.starts_with("GET /_pdsfs/uploads HTTP/1.0\r\n"), "{request}");
        assert!(request.contains("\r\nAuthorization: Bearer tok\r\n"), "{request}");
    }
}

//! The certificates of services that clients accept: those of the system's roots and of the setting `ca_file`.
//!
//! The system's roots are read in the first handshake, so a service on this machine needs none. Names and times
//! are checked by rustls.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::config::trusted_file;
use crate::error::{Error, ErrorKind, Result};

/// Largest `ca_file`. Those of systems, with all public authorities, have 300 KiB.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;

/// Roots in addition to those of the system. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ExtraRoots(Arc<[CertificateDer<'static>]>);

impl ExtraRoots {
    /// Reads a PEM file. Fails if it cannot be read, if others can write it, or if it holds no certificate or one that
    /// cannot be a root.
    pub fn read(ca_file: Option<&Path>) -> Result<Self> {
        let Some(path) = ca_file else { return Ok(Self::default()) };
        let failed = |why: &dyn Display| {
            let advice = "name a PEM file with the certificates of your authority";
            Error::new(ErrorKind::Invalid, format!("cannot use ca_file {}: {why}; {advice}", path.display()))
        };
        let text = trusted_file::read(path, CA_FILE_BYTES_MAX).map_err(|e| match e.kind() {
            ErrorKind::Denied => e.context("cannot use ca_file"),
            _ => failed(&e),
        })?;
        let text = text.ok_or_else(|| failed(&"it does not exist"))?;
        let certificates: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let certificates = certificates.map_err(|e| failed(&e))?;
        if certificates.is_empty() {
            return Err(failed(&"it holds no certificate"));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|e| failed(&e))?;
        }
        Ok(Self(certificates.into()))
    }

    /// The number of roots that peers are checked with, those of the system included.
    pub fn count_with_system(&self) -> usize {
        self.with_system().len()
    }

    fn with_system(&self) -> RootCertStore {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!(%error, "cannot read root certificates");
        }
        let mut roots = RootCertStore::empty();
        // Certificates of the system that cannot be roots are left out.
        roots.add_parsable_certificates(system.certs);
        roots.add_parsable_certificates(self.0.iter().cloned());
        roots
    }
}

/// The TLS configuration of clients. They share its sessions and its roots.
pub(super) fn client_config(extra: &ExtraRoots) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        LazyVerifier { provider: provider.clone(), extra: extra.clone(), loaded: Mutex::new(None) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::with_source(ErrorKind::Io, "cannot set up TLS", e))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The verifier of rustls, with roots that are read when the first certificate arrives.
#[derive(Debug)]
struct LazyVerifier {
    provider: Arc<CryptoProvider>,
    extra: ExtraRoots,
    /// A leaf lock. Empty until roots were found.
    loaded: Mutex<Option<Arc<WebPkiServerVerifier>>>,
}

impl LazyVerifier {
    fn loaded(&self) -> std::result::Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let mut loaded = self.loaded.lock();
        if let Some(verifier) = &*loaded {
            return Ok(verifier.clone());
        }
        let roots = self.extra.with_system();
        if roots.is_empty() {
            return Err(other(NoRoots));
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(other)?;
        *loaded = Some(verifier.clone());
        Ok(verifier)
    }
}

fn other(e: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))))
}

#[derive(Debug)]
struct NoRoots;

impl Display for NoRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this machine has no root certificates")
    }
}

impl std::error::Error for NoRoots {}

impl ServerCertVerifier for LazyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        self.loaded()?.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why the certificate of a peer was refused: the error in the causes of `error`, as the cause and the next step
/// for the user.
pub(super) fn certificate_refusal(
    error: &(dyn std::error::Error + 'static),
) -> Option<(String, &'static str)> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(rustls::Error::InvalidCertificate(reason)) = e.downcast_ref() {
            return Some(described(reason));
        }
        // The source of an I/O error is that of its inner error.
        let inner = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| e.source());
    }
    None
}

fn described(reason: &CertificateError) -> (String, &'static str) {
    use CertificateError as E;
    let advice = match reason {
        E::Other(other) if other.0.is::<NoRoots>() => {
            return (NoRoots.to_string(), "install the package ca-certificates, or set ca_file");
        }
        E::UnknownIssuer => {
            return (
                "the certificate of the host is not from a known authority (UnknownIssuer)".to_owned(),
                "check the network and the endpoint; if the authority is your own, name its certificate with \
                 ca_file",
            );
        }
        E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
            "check the clock of this machine; if it is right, the operator of the host must renew the certificate"
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => {
            "check the host name of the endpoint; the network may redirect connections"
        }
        _ => "check the network and the endpoint",
    };
    (reason.to_string(), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_ca_file_is_an_error_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (path, why) in [
            (dir.path().join("absent"), "it does not exist"),
            (at("empty", ""), "it holds no certificate"),
            (at("text", "hello"), "it holds no certificate"),
            (at("garbage", garbage), "invalid peer certificate"),
        ] {
            let error = ExtraRoots::read(Some(&path)).unwrap_err().to_string();
            let is_clear = error.contains("cannot use ca_file") && error.contains("PEM file");
            assert!(is_clear && error.contains(why), "{error}");
        }
        assert!(ExtraRoots::read(None).unwrap().0.is_empty());
    }

    #[test]
    fn ca_file_of_others_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = ExtraRoots::read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("is writable by every user"), "{error}");
        std::fs::write(&path, vec![b'\n'; 5 << 20]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let error = ExtraRoots::read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("is too large"), "{error}");
    }
}

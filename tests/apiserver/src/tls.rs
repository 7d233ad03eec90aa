//! Certificates, for a double that is reached as real servers are.

use std::fmt;
use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// An authority of a double's own, a server certificate for `localhost` and 127.0.0.1, and a client certificate. All are made anew.
#[derive(Clone)]
pub struct Tls {
    /// The authority's certificate, in PEM.
    pub authority: String,
    /// A client's certificate, in PEM.
    pub client: String,
    /// The client's key, in PEM.
    pub client_key: String,
    issuer: Arc<Issuer<'static, KeyPair>>,
    pub(crate) acceptor: TlsAcceptor,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// For a server that lets everyone in, as far as this goes.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn new() -> anyhow::Result<Self> {
        Self::of(false)
    }

    /// For a server that asks for a certificate, and talks to nobody without.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn asking_for_certificates() -> anyhow::Result<Self> {
        Self::of(true)
    }

    /// Another certificate for a client, and its key, both in PEM.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn another_client(&self) -> anyhow::Result<(String, String)> {
        let (client, key) = leaf(&self.issuer, &["kube-ipvs"], ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok((client.pem(), key.serialize_pem()))
    }

    fn of(asks: bool) -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);

        let (server, server_key) = leaf(&issuer, &["localhost", "127.0.0.1"], ExtendedKeyUsagePurpose::ServerAuth)?;
        let (client, client_key) = leaf(&issuer, &["kube-ipvs"], ExtendedKeyUsagePurpose::ClientAuth)?;

        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if asks {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from(authority.der().to_vec()))?;
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(server_key.serialize_der().into());
        let config = builder.with_single_cert(vec![CertificateDer::from(server.der().to_vec())], key)?;
        Ok(Self {
            authority: authority.pem(),
            client: client.pem(),
            client_key: client_key.serialize_pem(),
            issuer: Arc::new(issuer),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }
}

fn leaf(issuer: &Issuer<'_, KeyPair>, names: &[&str], purpose: ExtendedKeyUsagePurpose) -> anyhow::Result<(Certificate, KeyPair)> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.extended_key_usages = vec![purpose];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?, key))
}

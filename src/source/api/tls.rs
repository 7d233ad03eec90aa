//! Whose certificate an API server has to have that is reached by `--api-endpoints`: the one of the server that is configured.
//!
//! The certificates in `tls/` are good until 2126, for `api.example.test` and `10.96.0.1`, and for nothing but these tests.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::Acceptor;
use rustls::{ServerConfig, StreamOwned};

use super::*;

const AUTHORITY: &str = include_str!("tls/authority.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
const KEY: &[u8] = include_bytes!("tls/server.key");

const VERSION: &str = r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;

/// What a server was asked, and in whose name.
#[derive(Debug, PartialEq)]
struct Asked {
    name: Option<String>,
    request: Option<String>,
}

/// Answers one connection; where it is reached, and what it was asked in the end.
fn server() -> (Endpoint, JoinHandle<Asked>) {
    let certificate = CertificateDer::pem_slice_iter(CERTIFICATE).collect::<Result<Vec<_>, _>>().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(certificate, PrivateKeyDer::from_pem_slice(KEY).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serve = move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut acceptor = Acceptor::default();
        let accepted = loop {
            acceptor.read_tls(&mut socket).unwrap();
            if let Some(accepted) = acceptor.accept().unwrap() {
                break accepted;
            }
        };
        let name = accepted.client_hello().server_name().map(str::to_owned);
        let connection = accepted.into_connection(Arc::new(config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(connection, socket));
        // A client that does not like the certificate ends the connection.
        let lines = stream.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect::<Vec<_>>();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", VERSION.len());
        let _ = stream.get_mut().write_all(format!("{head}{VERSION}").as_bytes());
        let _ = stream.get_mut().flush();
        Asked { name, request: lines.first().cloned() }
    };
    (endpoint, thread::spawn(serve))
}

/// Asks that server as one that a kubeconfig calls `url`.
async fn ask(url: &str) -> (Result<(), String>, Asked) {
    let (endpoint, server) = server();
    let directory = tempfile::tempdir().unwrap();
    let (path, authority) = (directory.path().join("kubeconfig"), directory.path().join("authority.pem"));
    std::fs::write(&authority, AUTHORITY).unwrap();
    let kubeconfig = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": url, "certificate-authority": authority}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let client = connect(Some(&path), &[endpoint], &Freshness::new()).await.unwrap();
    let answer = client.apiserver_version().await.map(drop).map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    (answer, server.join().unwrap())
}

#[tokio::test]
async fn j10_a_server_that_is_reached_directly_has_the_certificate_of_the_configured_one() {
    let request = Some("GET /version HTTP/1.1".to_owned());
    let by_name = ask("https://api.example.test:6443").await;
    assert_eq!(by_name, (Ok(()), Asked { name: Some("api.example.test".to_owned()), request: request.clone() }));
    // Servers are not asked for by address.
    assert_eq!(ask("https://10.96.0.1").await, (Ok(()), Asked { name: None, request }));
}

#[tokio::test]
async fn j10_a_server_with_another_certificate_is_told_nothing() {
    for url in ["https://other.example.test", "https://10.96.0.2:443"] {
        let (answer, asked) = ask(url).await;
        let error = answer.unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        assert_eq!(asked.request, None, "{url}");
    }
}

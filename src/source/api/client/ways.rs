//! Every way in which a kubeconfig, or a pod, leads to an API server: each is tried against the double, which lets nobody else in.

use super::*;
use crate::captured::Log;
use apiserver::{ApiServer, Json, Options, Tls};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

const TOKEN: &str = "a-secret";

struct Cluster {
    server: ApiServer,
    tls: Tls,
    directory: tempfile::TempDir,
}

impl Cluster {
    async fn new(tls: Tls, token: Option<&str>) -> Self {
        let options = Options { tls: Some(tls.clone()), token: token.map(str::to_owned), ..Options::default() };
        let server = ApiServer::start(options).await.unwrap();
        let node = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}});
        server.apply(Json::from(node)).unwrap();
        Self { server, tls, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The fields of a cluster that trust the double's own authority.
    fn trusting(&self) -> String {
        format!("certificate-authority: {}", self.file("ca.crt", &self.tls.authority).display())
    }

    /// A client by a kubeconfig with these fields of its cluster and its user.
    async fn client(&self, cluster: &str, user: &str) -> Result<Client> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: b, user: c}}}}]\n\
             clusters:\n- name: b\n  cluster: {{server: '{}', {cluster}}}\nusers:\n- name: c\n  user: {{{user}}}\n",
            self.server.url()
        );
        connect(Some(&self.file("kubeconfig", &text)), &[], &Freshness::new()).await
    }
}

/// The Nodes' names, or the innermost reason why they are not told.
async fn nodes(client: &Client) -> Result<Vec<String>, String> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await;
    let nodes = nodes.map_err(|error| innermost(&error))?;
    Ok(nodes.items.into_iter().filter_map(|node| node.metadata.name).collect())
}

async fn assert_in(client: &Client) {
    assert_eq!(nodes(client).await.unwrap(), ["node-1"]);
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_or_not_at_all() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let token = format!("token: {TOKEN}");
    assert_in(&cluster.client(&cluster.trusting(), &token).await.unwrap()).await;
    let another = cluster.file("another.crt", &Tls::new().unwrap().authority);
    let distrusting = cluster.client(&format!("certificate-authority: {}", another.display()), &token).await.unwrap();
    let reason = nodes(&distrusting).await.unwrap_err();
    assert!(reason.contains("certificate"), "{reason}");
    let reckless = cluster.client("insecure-skip-tls-verify: true", &token).await.unwrap();
    assert_in(&reckless).await;
    let nobody = cluster.client(&cluster.trusting(), "token: another").await.unwrap();
    assert!(nodes(&nobody).await.unwrap_err().contains("Unauthorized"));
}

#[tokio::test]
async fn a_certificate_of_the_clients_lets_it_in() {
    let cluster = Cluster::new(Tls::asking_for_certificates().unwrap(), None).await;
    let certificate = cluster.file("client.crt", &cluster.tls.client);
    let key = cluster.file("client.key", &cluster.tls.client_key);
    let user = format!("client-certificate: {}, client-key: {}", certificate.display(), key.display());
    assert_in(&cluster.client(&cluster.trusting(), &user).await.unwrap()).await;
    // The same without a check of the server.
    assert_in(&cluster.client("insecure-skip-tls-verify: true", &user).await.unwrap()).await;
    let without = cluster.client(&cluster.trusting(), "").await.unwrap();
    assert!(nodes(&without).await.is_err());
}

#[tokio::test]
async fn a_clients_certificate_is_read_again_when_it_changes() {
    let cluster = Cluster::new(Tls::asking_for_certificates().unwrap(), None).await;
    let (second, second_key) = cluster.tls.another_client().unwrap();
    let (first, first_key) = (cluster.tls.client.clone(), cluster.tls.client_key.clone());
    // As the kubelet has it: both in one file, which a link names. And as others do, in two.
    let version = |name: &str, text: &str| {
        let (file, unready) = (cluster.file(&format!("client-{name}.pem"), text), cluster.directory.path().join("unready"));
        std::os::unix::fs::symlink(file, &unready).unwrap();
        std::fs::rename(unready, cluster.directory.path().join("client-current.pem")).unwrap();
    };
    version("1", &format!("{first}{first_key}"));
    let current = cluster.directory.path().join("client-current.pem");
    let linked = format!("client-certificate: {0}, client-key: {0}", current.display());
    let linked = cluster.client(&cluster.trusting(), &linked).await.unwrap();
    let (certificate, key) = (cluster.file("client.crt", &first), cluster.file("client.key", &first_key));
    let apart = format!("client-certificate: {}, client-key: {}", certificate.display(), key.display());
    let apart = cluster.client(&cluster.trusting(), &apart).await.unwrap();
    let shown = || cluster.server.requests().last().unwrap().certificate.clone().unwrap();
    for client in [&linked, &apart] {
        assert_in(client).await;
        assert_eq!(shown(), der(&first));
    }
    // Connections that are there are of no use any more.
    version("2", &format!("{second}{second_key}"));
    assert_in(&linked).await;
    assert_eq!(shown(), der(&second));

    let log = Log::capture();
    cluster.file("client.crt", &second);
    assert_in(&apart).await;
    assert_eq!(shown(), der(&first), "one whose key has not come yet");
    assert_in(&apart).await;
    assert_eq!(log.lines("what was before counts").len(), 1, "{:?}", log.lines(""));
    cluster.file("client.key", &second_key);
    assert_in(&apart).await;
    assert_eq!(shown(), der(&second));
    std::fs::remove_file(key).unwrap();
    assert_in(&apart).await;
    assert_eq!(shown(), der(&second), "one that is being replaced");
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn an_authority_is_read_again_when_it_changes() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let file = cluster.file("authority.crt", &Tls::new().unwrap().authority);
    let client = cluster.client(&format!("certificate-authority: {}", file.display()), &format!("token: {TOKEN}")).await.unwrap();
    assert!(nodes(&client).await.unwrap_err().contains("certificate"));
    cluster.file("authority.crt", &cluster.tls.authority);
    assert_in(&client).await;
}

#[tokio::test]
async fn a_token_file_is_read_again_when_the_token_changes() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let file = cluster.file("token", &format!("{TOKEN}\n"));
    let client = cluster.client(&cluster.trusting(), &format!("tokenFile: {}", file.display())).await.unwrap();
    assert_in(&client).await;
    // The kubelet writes a new one well before the old one ends.
    cluster.file("token", "another\n");
    cluster.server.set_token("another");
    assert_in(&client).await;
}

#[tokio::test]
async fn a_program_may_give_the_credentials() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let credential = format!(
        r#"{{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {{"token": "{TOKEN}"}}}}"#
    );
    let credential = cluster.file("credential", &credential);
    let exec = |program: &str| {
        format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {program}, args: ['{}'], interactiveMode: Never}}",
            credential.display()
        )
    };
    assert_in(&cluster.client(&cluster.trusting(), &exec("cat")).await.unwrap()).await;
    let reason = match cluster.client(&cluster.trusting(), &exec("/nonexistent/plugin")).await {
        Err(error) => format!("{error:#}"),
        Ok(client) => nodes(&client).await.unwrap_err(),
    };
    assert!(reason.contains("/nonexistent/plugin") || reason.contains("No such file"), "{reason}");
}

/// An HTTP proxy that knows CONNECT alone, and whom it has been asked for.
async fn proxy() -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut client = BufReader::new(stream);
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if client.read_line(&mut line).await.unwrap() <= 2 {
                        break;
                    }
                    head.push(line.trim_end().to_owned());
                }
                let target = head[0].strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut server = TcpStream::connect(&target).await.unwrap();
                seen.lock().unwrap().extend(head);
                client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                // Ends when either side does.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn an_http_proxy_may_be_in_between() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let (address, asked) = proxy().await;
    let fields = format!("{}, proxy-url: 'http://user:secret@{address}'", cluster.trusting());
    let client = cluster.client(&fields, &format!("token: {TOKEN}")).await.unwrap();
    assert_in(&client).await;
    let asked = asked.lock().unwrap().clone();
    let target = cluster.server.url().replace("https://", "");
    assert_eq!(asked[0], format!("CONNECT {target} HTTP/1.1"));
    assert!(asked.iter().any(|line| line.eq_ignore_ascii_case("proxy-authorization: Basic dXNlcjpzZWNyZXQ=")), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains(TOKEN)), "what is for the server is not for the proxy");
    let socks = cluster.client("proxy-url: 'socks5://127.0.0.1:1'", "").await.map(drop).unwrap_err();
    assert!(format!("{socks:#}").contains("socks5"), "{socks:#}");
}

#[tokio::test]
async fn another_server_takes_the_place_of_the_kubeconfigs() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let master = cluster.server.url().parse().unwrap();
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\ncontexts: [{{name: a, context: {{cluster: b, user: c}}}}]\n\
         clusters:\n- name: b\n  cluster: {{server: 'https://192.0.2.1:1', {}}}\nusers:\n- name: c\n  user: {{token: {TOKEN}}}\n",
        cluster.trusting()
    );
    let kubeconfig = cluster.file("kubeconfig", &text);
    let client = connect_to(Some(&kubeconfig), Some(&master), &[], &Freshness::new(), &Requests::new().unwrap()).await.unwrap();
    assert_in(&client).await;
    let plain = "http://127.0.0.1:1".parse().unwrap();
    let error =
        connect_to(Some(&kubeconfig), Some(&plain), &[], &Freshness::new(), &Requests::new().unwrap()).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("--master: credentials would go to http://127.0.0.1:1 unencrypted"), "{error}");
}

/// Where the kubelet puts a pod's service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The second half of the test below, in a process of its own.
#[tokio::test]
#[ignore = "to be run in a pod's surroundings; another test does"]
async fn in_a_pods_surroundings() {
    let client = connect(None, &[], &Freshness::new()).await.unwrap();
    assert_in(&client).await;
    let begun = std::time::Instant::now();
    while nodes(&client).await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the old token is let in for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::write(format!("{ACCOUNT}/token"), "another").unwrap();
    assert_in(&client).await;
    println!("let in again");
}

#[tokio::test]
async fn a_pods_service_account_lets_it_in_while_its_token_changes() {
    let cluster = Cluster::new(Tls::new().unwrap(), Some(TOKEN)).await;
    let authority = cluster.file("ca.crt", &cluster.tls.authority);
    // Its own mounts, so that this machine gets no service account.
    let script = format!(
        "set -e; mount -t tmpfs none /run; mkdir -p {ACCOUNT}; cp {} {ACCOUNT}/ca.crt; printf {TOKEN} > {ACCOUNT}/token; \
         printf kube-system > {ACCOUNT}/namespace; exec \"$0\" --ignored --exact source::api::client::ways::in_a_pods_surroundings --nocapture",
        authority.display()
    );
    let (host, port) = cluster
        .server
        .url()
        .replace("https://", "")
        .rsplit_once(':')
        .map(|(host, port)| (host.to_owned(), port.to_owned()))
        .unwrap();
    let mut command = Command::new("unshare");
    if !std::fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line.starts_with("Uid:\t0\t")) {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--mount", "sh", "-c", &script]).arg(std::env::current_exe().unwrap());
    command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT", port).env("KUBERNETES_SERVICE_PORT_HTTPS", "443");
    let child = tokio::task::spawn_blocking(move || command.output().unwrap());
    let begun = std::time::Instant::now();
    while cluster.server.requests().is_empty() && !child.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Once it was let in with the first one.
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.server.set_token("another");
    let output = child.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("let in again") && text.contains("1 passed"), "{text}");
}

//! The HTTP servers: health and metrics over TCP, names over the control socket.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

/// The answer to a request.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Vec<u8>,
    /// A header beyond those that every answer has.
    pub(crate) header: Option<(HeaderName, HeaderValue)>,
}

impl Answer {
    /// A JSON document.
    pub(crate) fn json(status: StatusCode, body: &serde_json::Value) -> Self {
        Self { status, content_type: "application/json", body: body.to_string().into_bytes(), header: None }
    }

    /// A line of text.
    pub(crate) fn text(status: StatusCode, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes(), header: None }
    }
}

/// How long a connection may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// A client over its request's head.
    head: Duration,
    /// All of it.
    whole: Duration,
}

/// Who reads an answer this slowly is no probe.
const PATIENCE: Patience = Patience { head: Duration::from_secs(10), whole: Duration::from_secs(30) };
/// How large a request's head may be, in bytes. Nobody has a reason to send more than a path and a few headers.
const HEAD_LIMIT: usize = 16 * 1024;
/// Connections served at a time. For one more the oldest is given up: a request that is whole is answered at once, so it is one whose client
/// takes its time.
const CONNECTIONS: usize = 64;
/// Connections that may wait to be accepted; the standard library's number.
const BACKLOG: i32 = 128;
/// How long to wait before trying again to listen on an address that is taken.
const RETRY: Duration = Duration::from_secs(5);

/// Listens on `address`; with `0.0.0.0` on both families, as with `[::]` and as Go does, if the kernel has both.
///
/// # Errors
/// When that is not possible.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if address.is_ipv6() {
            // Whatever net.ipv6.bindv6only says.
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
        match bind((Ipv6Addr::UNSPECIFIED, address.port()).into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {}
            listener => return listener,
        }
    }
    bind(address)
}

/// Serves GET requests on `address`, for as long as the process lives; through `listener` if there is one. `answer` gets the path and the address
/// that was called.
///
/// An address that cannot be listened on is retried: an agent whose health port is taken still proxies. `report` is told of it once.
pub(crate) async fn serve<F, R>(
    address: SocketAddr,
    what: &'static str,
    listener: Option<TcpListener>,
    report: impl FnOnce(String),
    answer: F,
) where
    F: Fn(String, IpAddr) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let mut listening = listener.map_or_else(|| listen(address), Ok);
    let mut report = Some(report);
    let listener = loop {
        match listening {
            Ok(listener) => break listener,
            Err(error) => {
                warn!(%address, %error, "cannot serve {what}; trying again every {} s", RETRY.as_secs());
                if let Some(report) = report.take() {
                    report(format!("cannot serve {what} on {address}: {error}; trying again every {} s", RETRY.as_secs()));
                }
                tokio::time::sleep(RETRY).await;
                listening = listen(address);
            }
        }
    };
    info!(%address, "serving {what}");
    let next = async || {
        let (stream, _) = listener.accept().await?;
        // On a socket for both families an IPv4 address comes in its IPv6 form.
        let called = stream.local_addr()?.ip().to_canonical();
        Ok((stream, called))
    };
    accept(next, PATIENCE, answer).await;
}

/// A listener on the control socket at `path`, which only root can use: mode 0600 in a directory of mode 0700.
///
/// # Errors
/// When the directory or the socket cannot be made.
pub(crate) fn control_listener(path: &Path) -> anyhow::Result<UnixListener> {
    let cannot = || format!("cannot make the control socket {}", path.display());
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        std::fs::create_dir_all(directory).with_context(cannot)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).with_context(cannot)?;
    }
    // Under another name until it has its mode: between the two anybody could connect.
    let mut unready = path.as_os_str().to_owned();
    unready.push(".unready");
    match std::fs::remove_file(&unready) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(cannot),
        _ => {}
    }
    let listener = UnixListener::bind(&unready).with_context(cannot)?;
    std::fs::set_permissions(&unready, std::fs::Permissions::from_mode(0o600)).with_context(cannot)?;
    std::fs::rename(&unready, path).with_context(cannot)?;
    Ok(listener)
}

/// Serves GET requests on the control socket, for as long as the process lives.
pub(crate) async fn serve_control<F, R>(listener: UnixListener, answer: F)
where
    F: Fn(String) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    accept(async || listener.accept().await.map(|(stream, _)| (stream, ())), PATIENCE, move |path, ()| answer(path)).await;
}

/// Answers whoever `next` brings, with what it says of where they have called.
async fn accept<S, C, F, R>(next: impl AsyncFn() -> io::Result<(S, C)>, patience: Patience, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    C: Copy + 'static,
    F: Fn(String, C) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let mut connections = Connections::default();
    loop {
        match next().await {
            Ok((stream, called)) => {
                let answer = answer.clone();
                connections.add(tokio::task::spawn_local(async move {
                    let served = connection(stream, patience.head, move |path| answer(path, called));
                    if tokio::time::timeout(patience.whole, served).await.is_err() {
                        debug!("a connection took longer than {} s", patience.whole.as_secs());
                    }
                }));
            }
            Err(error) => {
                // Out of file descriptors, most likely: waiting lets some be closed.
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The connections of a server, the oldest first. They end with it.
#[derive(Default)]
struct Connections(VecDeque<JoinHandle<()>>);

impl Connections {
    fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() >= CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn connection<S, F, R>(stream: S, head: Duration, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Fn(String) -> R + Clone + 'static,
    R: Future<Output = Answer> + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(respond(&request, answer).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HEAD_LIMIT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection ended early");
    }
}

async fn respond<F, R>(request: &Request<Incoming>, answer: F) -> Response<Full<Bytes>>
where
    F: Fn(String) -> R,
    R: Future<Output = Answer>,
{
    let allowed = matches!(*request.method(), Method::GET | Method::HEAD);
    let answer = if allowed {
        answer(request.uri().path().to_owned()).await
    } else {
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here")
    };
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    if let Some((name, value)) = answer.header {
        response.headers_mut().insert(name, value);
    }
    if !allowed {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::{Instant, timeout};

    /// Only failures wait for it.
    const LONG: Duration = Duration::from_secs(60);

    /// The address of a server that answers with the path.
    async fn server() -> SocketAddr {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |path: String, _| std::future::ready(Answer::text(StatusCode::OK, &path));
        spawn_local(serve(address, "a test", Some(listener), drop, answer));
        timeout(LONG, async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        address
    }

    /// The address of one that has this patience, and of which every answer but `/healthz` is larger than what the kernel keeps for a client that
    /// does not read.
    async fn server_with(patience: Patience) -> SocketAddr {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let next = async move || listener.accept().await.map(|(stream, _)| (stream, ()));
        let answer = |path: String, ()| {
            let more = if path == "/healthz" { 0 } else { LARGE };
            std::future::ready(Answer::text(StatusCode::OK, &(path + &" ".repeat(more))))
        };
        spawn_local(accept(next, patience, answer));
        address
    }

    /// Bytes of an answer, many times what `net.ipv4.tcp_wmem` and `tcp_rmem` allow.
    const LARGE: usize = 64 << 20;

    /// How many bytes there are to read until the connection ends.
    async fn read_to_end(stream: &mut TcpStream) -> usize {
        let (mut read, mut buffer) = (0, vec![0; 1 << 16]);
        // One that is reset has ended too.
        while let Ok(some @ 1..) = timeout(LONG, stream.read(&mut buffer)).await.unwrap() {
            read += some;
        }
        read
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), head: &str) -> String {
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that has heard enough closes the connection in the middle of the request; what it said before is here.
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr) -> String {
        ask(&mut TcpStream::connect(address).await.unwrap(), "GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await
    }

    #[tokio::test]
    async fn a_thousand_clients_that_never_finish_keep_nobody_waiting() {
        LocalSet::new()
            .run_until(async {
                let address = server().await;
                let mut slow = Vec::new();
                for _ in 0..1_000 {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ").await.unwrap();
                    slow.push(stream);
                }
                for _ in 0..10 {
                    let begun = Instant::now();
                    let answer = get(address).await;
                    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n/healthz\n"), "{answer}");
                    // A probe gives up after a second unless it is told otherwise.
                    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
                    for stream in &mut slow {
                        // Those that were given up say so.
                        let _ = stream.try_write(b"a");
                    }
                }
                let mut open = 0;
                for stream in &slow {
                    open += usize::from(
                        matches!(stream.try_read(&mut [0; 64]), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
                    );
                }
                assert!(open <= CONNECTIONS, "{open} are still open");
            })
            .await;
    }

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            if any.is_ipv6() && !has_ipv6 {
                assert!(listen((any, 0).into()).is_err());
                continue;
            }
            let listener = listen((any, 0).into()).unwrap();
            let port = listener.local_addr().unwrap().port();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            assert_eq!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.is_ok(), has_ipv6);
            assert_eq!(listen((any, port).into()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
        let one = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap().local_addr().unwrap();
        assert!(one.is_ipv4(), "a single address is that alone");
    }

    #[tokio::test]
    async fn a_head_has_a_limit() {
        LocalSet::new()
            .run_until(async {
                let address = server().await;
                let head = |bytes: usize| format!("GET /healthz HTTP/1.1\r\nX-Large: {}\r\n\r\n", "x".repeat(bytes));
                let mut stream = TcpStream::connect(address).await.unwrap();
                assert!(ask(&mut stream, &head(8_000)).await.starts_with("HTTP/1.1 200 "));
                let mut stream = TcpStream::connect(address).await.unwrap();
                let answer = ask(&mut stream, &head(HEAD_LIMIT)).await;
                assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
            })
            .await;
    }

    #[tokio::test]
    async fn half_a_head_is_waited_for_until_its_time_is_up_and_no_longer() {
        LocalSet::new()
            .run_until(async {
                let head = Duration::from_millis(500);
                let address = server_with(Patience { head, whole: 10 * LONG }).await;
                let begun = Instant::now();
                let mut slow = TcpStream::connect(address).await.unwrap();
                slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: no").await.unwrap();
                assert!(get(address).await.ends_with("/healthz\n"), "others are answered meanwhile");
                let answered = ask(&mut slow, "").await;
                assert!(begun.elapsed() >= head, "{:?}", begun.elapsed());
                assert!(!answered.contains("200 OK"), "{answered}");
                // One that is whole before that is answered, however slowly it came.
                let mut slow = TcpStream::connect(address).await.unwrap();
                slow.write_all(b"GET /healthz HTTP/1.1\r\nHost: no").await.unwrap();
                tokio::time::sleep(head / 5).await;
                assert!(ask(&mut slow, "de\r\n\r\n").await.ends_with("/healthz\n"));
            })
            .await;
    }

    #[tokio::test]
    async fn who_does_not_read_is_cut_off_and_keeps_nobody_waiting() {
        LocalSet::new()
            .run_until(async {
                let whole = Duration::from_millis(500);
                let address = server_with(Patience { head: LONG, whole }).await;
                let request = b"GET /large HTTP/1.1\r\nHost: node\r\n\r\n";
                let mut idle = TcpStream::connect(address).await.unwrap();
                idle.write_all(request).await.unwrap();
                assert!(get(address).await.ends_with("/healthz\n"), "others are answered meanwhile");
                // The server's timer is due before this one.
                tokio::time::sleep(2 * whole).await;
                let read = read_to_end(&mut idle).await;
                assert!((1..LARGE).contains(&read), "{read} bytes: what the kernel had taken, and no more");
                assert!(get(address).await.ends_with("/healthz\n"));

                let address = server_with(Patience { head: LONG, whole: LONG }).await;
                let mut keen = TcpStream::connect(address).await.unwrap();
                keen.write_all(request).await.unwrap();
                assert!(read_to_end(&mut keen).await > LARGE, "who reads has all of it");
            })
            .await;
    }

    #[tokio::test]
    async fn the_control_socket_is_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // The second takes the place of what an agent that was killed has left.
        for _ in 0..2 {
            let listener = control_listener(&path).unwrap();
            assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
            assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
            LocalSet::new()
                .run_until(async {
                    spawn_local(serve_control(listener, |path| std::future::ready(Answer::text(StatusCode::OK, &path))));
                    let mut stream = UnixStream::connect(&path).await.unwrap();
                    let answer = ask(&mut stream, "GET /names HTTP/1.1\r\nHost: control\r\n\r\n").await;
                    assert!(answer.ends_with("\r\n\r\n/names\n"), "{answer}");
                    let mut stream = UnixStream::connect(&path).await.unwrap();
                    let answer = ask(&mut stream, "POST /names HTTP/1.1\r\nHost: control\r\n\r\n").await;
                    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
                })
                .await;
        }
    }
}

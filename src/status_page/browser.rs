//! The page in a real browser: Chromium without a screen, driven through its debugging pipe, before the page's own server.
//!
//! The kernel that is looked at is one of the tests; all else is what an agent does: it is asked on its desk, and HTTP is served by its server.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use model::{Protocol, VirtualServerKey};
use serde_json::{Value, json};
use tokio::task::LocalSet;

use super::StatusPage;
use crate::control::{AskAgent, AskReconciler, Desk};
use crate::http::{self, Answer};
use crate::mailbox::Mailbox;
use crate::status::join::{Sets, Told, join};
use crate::status::tests::{SHOP, documents, kernel_table, web};
use crate::status::view::{Behind, Drift, ServicePort, View};
use crate::top::sample::Sample;

/// How long anything may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a pod is called whose name is meant to be more than that.
const EVIL: &str = "</small><img src=\"http://192.0.2.99/seen\"><script>window.ran = true</script>";
const LONG: &str = "observability/prometheus-kube-prometheus-alertmanager";

/// Counts looks, so that each sees more traffic than the one before.
static LOOKS: AtomicU64 = AtomicU64::new(0);

/// A node with what is hard to show: long names, hostile ones, and everything that a row can be.
#[expect(clippy::unnecessary_wraps, reason = "stands for a look at the kernel")]
fn look(told: Option<&Told>) -> Result<View, kernel::Error> {
    let looks = LOOKS.fetch_add(1, Ordering::Relaxed);
    let mut view = join(kernel_table(), told, Some(Sets::new()));
    let shop = view.virtual_servers.iter().find(|row| row.key == web()).unwrap().clone();
    for (index, (address, behind)) in [
        ("10.96.7.7", Behind::Service(ServicePort { service: LONG.to_owned(), port: "http-web".to_owned(), frontend: None })),
        ("2001:db8:1234:5678:9abc:def0:1234:5678", Behind::Foreign),
    ]
    .into_iter()
    .enumerate()
    {
        let mut row = shop.clone();
        row.key = VirtualServerKey::address(address.parse().unwrap(), Protocol::Tcp, 30_443);
        row.behind = behind;
        row.drift = (index == 0).then(|| Drift::Otherwise("scheduler mh, persistence by 128 bits".to_owned()));
        for real in &mut row.real_servers {
            real.server.weight = 0;
            real.connections.active = 700_000;
            real.pod = Some(EVIL.to_owned());
            real.node = Some("ip-10-0-12-17.eu-central-1.compute.internal".to_owned());
        }
        view.virtual_servers.push(row);
    }
    for row in &mut view.virtual_servers {
        row.traffic.bytes_in += looks * looks * 1_000;
        row.traffic.packets_in += looks * 10;
        row.traffic.connections += looks;
    }
    Ok(view)
}

/// Serves the page as an agent does, for as long as the process lives. A minute has been looked at already.
fn serve() -> SocketAddr {
    let (sender, receiver) = mpsc::channel();
    let (agent, mut asked) = tokio::sync::mpsc::channel(1);
    let desk = Desk { reconciler: Mailbox::default(), agent };
    let reconciler = desk.reconciler.clone();
    thread::spawn(move || {
        loop {
            for ask in reconciler.take(PATIENCE).into_iter().flat_map(|letter| letter.asks) {
                let (table, drains, _) = documents();
                // Whoever asked may have gone.
                match ask {
                    AskReconciler::VirtualServers(ask) => drop(ask.send(table)),
                    AskReconciler::Drains(ask) => drop(ask.send(drains)),
                }
            }
        }
    });
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serving = async {
            tokio::task::spawn_local(async move {
                while let Some(AskAgent::Endpoints(ask)) = asked.recv().await {
                    let _ = ask.send(documents().2);
                }
            });
            let page = StatusPage { look, ..StatusPage::new(desk) };
            let (table, drains, endpoints) = documents();
            let told = Told::new(table, &drains, endpoints);
            let minute = Duration::from_secs(60);
            for second in 0..60 {
                let at = Instant::now() - minute + Duration::from_secs(second);
                let before = page.seen.borrow().sample.clone();
                let sample = Sample::new(&look(Some(&told)).unwrap(), at, before.as_ref());
                page.seen.borrow_mut().take(sample);
            }
            let listener = http::listen(([127, 0, 0, 1], 0).into()).unwrap();
            let address = listener.local_addr().unwrap();
            sender.send(address).unwrap();
            http::serve(
                address,
                "the page",
                Some(listener),
                |problem| panic!("{problem}"),
                move |path, _| {
                    let page = page.clone();
                    async move { page.answer(&path).await.unwrap_or_else(|| Answer::text(StatusCode::NOT_FOUND, "not here")) }
                },
            )
            .await;
        };
        LocalSet::new().block_on(&runtime, serving);
    });
    receiver.recv_timeout(PATIENCE).unwrap()
}

/// Chromium, at one page.
struct Browser {
    process: Child,
    questions: ChildStdin,
    messages: mpsc::Receiver<Value>,
    /// What has happened and nobody has looked at.
    events: VecDeque<Value>,
    session: Option<String>,
    asked: u64,
}

impl Browser {
    fn start(program: &Path, directory: &Path) -> Self {
        // Chromium reads what it is to do from descriptor 3 and answers on 4.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null"#])
            .arg(program)
            .args(options())
            .arg(format!("--user-data-dir={}", directory.join("profile").display()))
            .args(["--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(directory.join("browser.log")).unwrap())
            .spawn()
            .unwrap();
        let (questions, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        thread::spawn(move || {
            for message in BufReader::new(answers).split(0) {
                let Ok(message) = message else { return };
                if sender.send(serde_json::from_slice(&message).unwrap()).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { process, questions, messages, events: VecDeque::new(), session: None, asked: 0 };
        let target = browser.ask("Target.createTarget", &json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.ask("Target.attachToTarget", &json!({"targetId": target, "flatten": true}));
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Asks by the protocol of its developer tools; `Err` with what it has against that.
    fn try_ask(&mut self, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.asked += 1;
        let mut question = json!({"id": self.asked, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            question["sessionId"] = session.as_str().into();
        }
        self.questions.write_all(format!("{question}\0").as_bytes()).unwrap();
        loop {
            let mut message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] != self.asked {
                self.events.push_back(message);
            } else if message["error"].is_null() {
                return Ok(message["result"].take());
            } else {
                return Err(message["error"].take());
            }
        }
    }

    fn ask(&mut self, method: &str, parameters: &Value) -> Value {
        self.try_ask(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Has the screen this wide, in pixels.
    fn set_width(&mut self, width: u32) {
        let metrics = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false});
        self.ask("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// Evaluates a script in the page until it says something that is not null; `Err` with what came of it. The page is loaded anew at any time.
    fn evaluate(&mut self, script: &str, patience: Duration) -> Result<Value, String> {
        let start = Instant::now();
        loop {
            let answer = self.try_ask("Runtime.evaluate", &json!({"expression": script, "returnByValue": true}));
            if let Ok(answer) = &answer
                && answer["exceptionDetails"].is_null()
                && !answer["result"]["value"].is_null()
            {
                return Ok(answer["result"]["value"].clone());
            }
            if start.elapsed() > patience {
                return Err(format!("{script}: {answer:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is shown once `condition` holds.
    fn seen(&mut self, condition: &str) -> Value {
        let script = format!("document.readyState == 'complete' && ({condition}) ? ({SEEN})() : null");
        self.evaluate(&script, PATIENCE).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Clicks on the link to `path`, and waits until it has led there.
    fn follow(&mut self, path: &str) -> Value {
        let start = Instant::now();
        let click = format!(
            "(() => {{ const link = document.querySelector('a[href=\"{path}\"]'); link?.click(); return link && true; }})()"
        );
        let arrived = format!("document.readyState == 'complete' && location.pathname == '{path}' ? ({SEEN})() : null");
        loop {
            // The page may have been on its way to be loaded anew.
            let clicked = self.evaluate(&click, PATIENCE);
            let seen = clicked.and_then(|_| self.evaluate(&arrived, PATIENCE / 10));
            match seen {
                Ok(seen) => return seen,
                Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    /// What has happened since the last time, of one kind.
    fn happened(&self, method: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["method"] == method).map(|event| &event["params"]).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a person sees of the page.
const SEEN: &str = r"() => {
    const text = (selector) => [...document.querySelectorAll(selector)].map((element) => element.innerText.trim());
    const root = document.documentElement, table = document.querySelector('table').getBoundingClientRect();
    return {
        path: location.pathname,
        title: document.title,
        text: document.body.innerText,
        heads: text('th'),
        sorted: text('th[aria-sort]'),
        rows: [...document.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText.trim())),
        shares: [...document.querySelectorAll('meter')].map((meter) => meter.value),
        colours: [...document.querySelectorAll('tbody tr')].map((row) => getComputedStyle(row).color),
        width: root.clientWidth,
        beyond: Math.max(root.scrollWidth - root.clientWidth, table.right - root.clientWidth, -table.left),
        cut: [...document.querySelectorAll('th, td')].filter((cell) => cell.scrollWidth > cell.clientWidth + 1).length,
        images: document.images.length,
        scripts: document.scripts.length,
    };
}";

fn options() -> [&'static str; 7] {
    [
        "--headless=new",
        // Its sandbox needs what containers do not have.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--hide-scrollbars",
        "--no-proxy-server",
    ]
}

/// Takes a picture of a page.
fn picture(program: &Path, directory: &Path, url: &str, width: u32) -> PathBuf {
    let name = if url.contains("/service/") { "servers" } else { "services" };
    let path = directory.join(format!("{name}-{width}.png"));
    let profile = tempfile::tempdir().unwrap();
    let status = Command::new(program)
        .args(options())
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--window-size={width},700"))
        .arg(format!("--screenshot={}", path.display()))
        .arg(url)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    path
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// A column of what is seen.
fn column(seen: &Value, index: usize) -> Vec<&str> {
    seen["rows"].as_array().unwrap().iter().map(|row| row[index].as_str().unwrap()).collect()
}

fn fits(seen: &Value) {
    assert_eq!(seen["beyond"], 0, "the page is wider than the window of {}: {seen:#}", seen["width"]);
    assert_eq!(seen["cut"], 0, "texts are wider than their cells: {seen:#}");
}

#[test]
#[ignore = "needs Chromium; `cargo xtask test --tier tools` gets it and runs this"]
fn the_page_shows_a_node_and_does_nothing_else() {
    let program = std::env::var_os("CHROMIUM").map(PathBuf::from).expect("CHROMIUM: where the browser is");
    let directory = tempfile::tempdir().unwrap();
    let origin = format!("http://{}", serve());
    let mut browser = Browser::start(&program, directory.path());
    browser.set_width(1_000);
    browser.ask("Page.navigate", &json!({"url": format!("{origin}/")}));

    // All Services, the busiest first.
    let services = browser.seen("document.querySelector('table')");
    assert_eq!(services["title"], "node-1 - kube-ipvs");
    assert!(services["text"].as_str().unwrap().contains("6 virtual servers (2 foreign)"), "{services:#}");
    let heads = ["Service", "Servers", "Active", "Inactive", "Conn/s", "Packets/s", "Bytes/s", "Trend", "State"];
    assert_eq!(words(&services["heads"]), heads);
    assert_eq!(words(&services["sorted"]), ["Active"]);
    let long = format!("{LONG}:http-web");
    let active: Vec<u64> = column(&services, 2).iter().map(|number| number.parse().unwrap()).collect();
    assert!(active.len() == 5 && active.is_sorted_by(|one, other| one >= other), "{services:#}");
    let row = |name: &str| services["rows"].as_array().unwrap().iter().position(|row| row[0] == name).unwrap();
    assert_eq!(services["rows"][row(SHOP)][8], "1 draining");
    assert_eq!(services["rows"][row(&long)][8], "drifted, 1 draining, no servers");
    assert!(services["rows"][row(SHOP)][7].as_str().unwrap().contains('█'), "a trend: {services:#}");
    let colour = |name: &str| services["colours"][row(name)].as_str().unwrap();
    assert_ne!(colour(SHOP), colour("kube-system/kube-dns:dns"));
    assert_ne!(colour(SHOP), colour(&long));
    fits(&services);
    browser.set_width(1_400);
    fits(&browser.seen("document.documentElement.clientWidth == 1400"));
    browser.set_width(1_000);

    // Sorted otherwise, it stays so, and goes on by itself.
    let by_name = browser.follow("/by/name");
    assert_eq!(words(&by_name["sorted"]), ["Service"]);
    assert!(column(&by_name, 0).is_sorted(), "{by_name:#}");
    let condition = |bytes: &str| format!("document.querySelector('tbody tr').cells[6].innerText != '{bytes}'");
    let later = browser.seen(&condition(by_name["rows"][0][6].as_str().unwrap()));
    assert_eq!((&later["path"], column(&later, 0)), (&json!("/by/name"), column(&by_name, 0)));

    // The servers of one.
    let servers = browser.follow(&format!("/service/{SHOP}"));
    assert!(servers["text"].as_str().unwrap().contains("TCP 10.96.0.10:80 rr"), "{servers:#}");
    assert_eq!(column(&servers, 0), ["10.244.1.2:8080\nweb-a on node-1", "10.244.1.3:8080\nweb-b on node-2"]);
    assert_eq!(column(&servers, 8), ["", "draining 14m12s"]);
    assert_eq!(servers["shares"], json!([0.6, 0.4]));
    fits(&servers);
    browser.follow("/");
    let hostile = browser.follow(&format!("/service/{long}"));
    assert!(column(&hostile, 0)[0].contains(EVIL), "{hostile:#}");
    assert_eq!((&hostile["images"], &hostile["scripts"]), (&json!(0), &json!(0)));
    fits(&hostile);

    // Nothing was asked of anybody else, nothing ran, and the browser has nothing to complain about.
    let requests = browser.happened("Network.requestWillBeSent");
    let urls: Vec<_> = requests.iter().map(|event| event["request"]["url"].as_str().unwrap()).collect();
    assert!(urls.len() >= 6 && urls.iter().all(|url| url.starts_with(&format!("{origin}/"))), "{urls:?}");
    for event in ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening"] {
        assert!(browser.happened(event).is_empty(), "{:#?}", browser.happened(event));
    }
    // What somebody smuggles in in spite of that is not run.
    let smuggled = "(() => { const script = document.createElement('script'); script.textContent = 'window.ran = true'; \
        document.head.append(script); return window.ran === undefined; })()";
    assert_eq!(browser.evaluate(smuggled, PATIENCE), Ok(json!(true)));
    drop(browser);

    let kept = std::env::var_os("SCREENSHOTS").map(PathBuf::from);
    let pictures = kept.as_deref().unwrap_or(directory.path());
    for (path, width) in [("/", 1_000), ("/", 1_400), ("/service/shop/web:http", 1_000)] {
        let picture = picture(&program, pictures, &format!("{origin}{path}"), width);
        assert!(fs::read(&picture).unwrap().starts_with(b"\x89PNG"), "{}", picture.display());
    }
}

use std::collections::BTreeMap;

use super::*;

#[test]
fn names_carry_the_prefix_and_counts_add_up() {
    let metrics = Metrics::new().unwrap();
    metrics.count_pass(Pass::Start, Duration::from_millis(3), true);
    metrics.count_complete();
    metrics.count_phase(Phase::Plan, Duration::from_millis(1500));
    metrics.count_phase(Phase::Plan, Duration::from_millis(1000));
    metrics.count_pass(Pass::Change, Duration::from_millis(1), false);
    metrics.count_flush(Family::V4, Duration::ZERO, Some(3));
    metrics.count_flush(Family::V4, Duration::ZERO, None);
    metrics.note_scheduler("mh", true);
    metrics.note_scheduler("new", false);
    metrics.note_scheduler("found", false);
    metrics.note_scheduler("found", true);
    let text = String::from_utf8(metrics.render().unwrap()).unwrap();
    assert!(text.contains("kube_ipvs_stale_flows_total 3\n"), "{text}");
    assert!(text.contains("kube_ipvs_phase_seconds_total{phase=\"plan\"} 2.5\n"), "{text}");
    assert!(text.contains("kube_ipvs_phase_seconds_total{phase=\"kernel\"} 0\n"), "{text}");
    let lacking: Vec<_> = text.lines().filter(|line| line.starts_with("kube_ipvs_lacking_schedulers")).collect();
    assert_eq!(lacking, ["kube_ipvs_lacking_schedulers{scheduler=\"new\"} 1"]);
    assert!(text.contains("kube_ipvs_flow_flushes_total{result=\"error\"} 1\n"), "{text}");
    assert!(text.contains("kube_ipvs_syncs_total{pass=\"start\",result=\"success\"} 1"), "{text}");
    assert!(text.contains("kube_ipvs_syncs_total{pass=\"change\",result=\"error\"} 1"), "{text}");
    assert!(text.contains("kube_ipvs_sync_duration_seconds_count 2"), "{text}");
    assert!(!text.contains("kube_ipvs_last_success_timestamp_seconds 0\n"), "{text}");
}

/// Metrics with a value of everything, as they are told.
fn sample() -> (Metrics, String) {
    let metrics = Metrics::new().unwrap();
    for pass in [Pass::Start, Pass::Change, Pass::Audit, Pass::Repair] {
        metrics.count_pass(pass, Duration::from_millis(3), true);
    }
    metrics.count_complete();
    metrics.count_saved();
    metrics.count_flush(Family::V4, Duration::from_millis(1), Some(3));
    metrics.note_scheduler("mh", false);
    metrics.note_staleness("services", Duration::from_secs(3));
    metrics.note_differing(Duration::from_secs(3));
    metrics.count_drain(true);
    metrics.count_drift(Pass::Audit);
    metrics.count_reading(Reading::Done);
    metrics.count_reload(true);
    metrics.count_reload(false);
    metrics.objects.with_label_values(&["vip"]).set(3);
    metrics.problems.with_label_values(&["Conflict"]).set(1);
    metrics.events.with_label_values(&["written"]).inc();
    metrics.repairs.with_label_values(&["packet rules"]).inc();
    metrics.trouble.with_label_values(&["services"]).inc();
    metrics.source_synced.with_label_values(&["services"]).set(1);
    metrics.no_local_endpoints.with_label_values(&["IPv4", "internal"]).set(1);
    metrics.upstream.note_queued();
    metrics.upstream.note_synced();
    metrics.upstream.count_programmed(Family::V4, SystemTime::now());
    metrics.upstream.count_probe("/healthz", 200);
    metrics.upstream.count_probe("/livez", 503);
    metrics.requests.count("GET", "192.0.2.1:6443", Some(200));
    metrics.requests.count("POST", "192.0.2.1:6443", None);
    metrics.requests.note_duration("GET", "192.0.2.1:6443", Duration::from_millis(20));
    let mut text = metrics.render().unwrap();
    text.extend(crate::traffic::tests::sample());
    (metrics, String::from_utf8(text).unwrap())
}

/// What is said about all of it, from the text that is scraped: by name, the type and the labels.
fn told(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut told = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            last = name.to_owned();
            assert!(told.insert(last.clone(), (kind.to_owned(), BTreeSet::new())).is_none(), "{name} is told twice");
        } else if let Some((_, labels)) = line.split_once('{') {
            let labels =
                labels.rsplit_once('}').unwrap().0.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let labels = labels.filter(|label| label != "le");
            told.get_mut(&last).unwrap().1.extend(labels);
        }
    }
    told
}

/// The rows of the tables in docs/metrics.md: by name, the type and the labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = include_str!("../../docs/metrics.md");
    let mut documented = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, meaning] = cells[..] else { panic!("no row of four cells: {line}") };
        assert!(meaning.trim_end_matches(" |").len() > 10, "{line}");
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned()).filter(|label| !label.is_empty());
        let row = (kind.to_owned(), labels.collect());
        assert!(documented.insert(name.trim_matches('`').to_owned(), row).is_none(), "twice: {line}");
    }
    documented
}

#[test]
fn the_documentation_lists_every_metric_with_its_type_and_labels_and_no_other() {
    let (metrics, text) = sample();
    let told = told(&text);
    for (group, prefix) in metrics.groups().into_iter().zip(["kube_ipvs_", "kubeproxy_", "", "process_"]) {
        for group::Described { name, kind, labels } in group.described.iter() {
            let name = format!("{prefix}{name}");
            let (told_kind, told_labels) = told.get(&name).unwrap_or_else(|| panic!("the sample has no value of {name}"));
            assert_eq!((kind, labels.iter().cloned().collect::<BTreeSet<_>>()), (told_kind, told_labels.clone()), "{name}");
        }
    }
    let documented = documented();
    for (name, row) in &told {
        assert_eq!(documented.get(name), Some(row), "{name} in docs/metrics.md");
    }
    assert_eq!(documented.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>());
}

#[test]
fn a_configuration_that_cannot_be_read_is_seen_until_one_can() {
    let metrics = Metrics::new().unwrap();
    let shown = || {
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("kube_ipvs_config_{name} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        let counts = ["success", "error"].map(|result| value(&format!("reloads_total{{result=\"{result}\"}}")));
        (counts, value("last_reload_successful"), value("last_reload_success_timestamp_seconds"))
    };
    let (counts, successful, started) = shown();
    assert_eq!((counts, successful), ([0.0, 0.0], 1.0), "what is in force from the start on could be read");
    assert!(started > 1.7e9);
    std::thread::sleep(Duration::from_millis(5));
    metrics.count_reload(false);
    assert_eq!(shown(), ([0.0, 1.0], 0.0, started));
    metrics.count_reload(true);
    let (counts, successful, at) = shown();
    assert_eq!((counts, successful), ([1.0, 1.0], 1.0));
    assert!(at > started);
}

/// What promtool is shown, and what shows a reader of the repository all that there is; without the numbers, which differ.
#[test]
fn what_is_scraped_looks_like_this() {
    let (_, text) = sample();
    let shown = text.lines().map(|line| match line.rsplit_once(' ') {
        Some((series, _)) if !line.starts_with('#') => format!("{series} 1\n"),
        _ => format!("{line}\n"),
    });
    insta::assert_snapshot!("scraped", shown.collect::<String>());
}

/// The kernel's own words for what kube-proxy has are not ours to choose: names, labels and buckets that dashboards ask for.
#[test]
fn the_dashboard_of_the_kubernetes_mixin_finds_what_it_asks_for() {
    let (_, text) = sample();
    let told = told(&text);
    for (name, kind, labels) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", &["ip_family"][..]),
        ("kubeproxy_network_programming_duration_seconds", "histogram", &["ip_family"]),
        ("rest_client_requests_total", "counter", &["code", "host", "method"]),
        ("rest_client_request_duration_seconds", "histogram", &["host", "verb"]),
        ("process_resident_memory_bytes", "gauge", &[]),
        ("process_cpu_seconds_total", "counter", &[]),
    ] {
        assert_eq!(told[name], (kind.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect()), "{name}");
    }
    let bounds = |name: &str| {
        let buckets = text.lines().filter(|line| line.starts_with(&format!("{name}_bucket{{ip_family=\"IPv4\",")));
        buckets.map(|line| line.split("le=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let passes = bounds("kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!((passes.len(), &*passes[0], &*passes[14], &*passes[15]), (16, "0.001", "16.384", "+Inf"));
    assert_eq!(bounds("kubeproxy_network_programming_duration_seconds").len(), 82);
}

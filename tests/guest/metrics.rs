//! `/metrics` of a node with traffic: what the kernel counts of Services, and what kube-proxy's dashboards ask for.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{Family, On, Protocol, Result, World, answers, eventually};

use crate::support::{PATIENCE, POD_PORT, node, serving, slice, slices, started};

/// What is scraped, no sooner than a second after the last time: more often nothing is read.
fn scraped(world: &World) -> Result<String> {
    std::thread::sleep(Duration::from_millis(1100));
    world.node().exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:10249/metrics"])
}

/// The sum of all series of a metric whose labels contain this.
fn value(metrics: &str, name: &str, labels: &str) -> Result<f64> {
    let series = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, of) = series.split_once('{').unwrap_or((series, ""));
        (found == name && of.contains(labels)).then(|| value.parse::<f64>().context("no number"))
    });
    let series = series.collect::<Result<Vec<f64>>>()?;
    ensure!(!series.is_empty(), "there is no {name}{{{labels}}} in:\n{metrics}");
    Ok(series.iter().sum())
}

fn web() -> Service {
    Service::new("web").cluster_ip("10.96.0.10").port("tcp", Protocol::Tcp, 80, POD_PORT).node_port(30080)
}

#[test]
fn traffic_is_counted_by_service_and_no_counter_goes_back_when_the_table_is_emptied() {
    World::test(|world| {
        let (client, (one, _one)) = (world.pod("client", On::Node)?, serving(world, "one", On::Node)?);
        let (two, _two) = serving(world, "two", On::Node2)?;
        let quiet = Service::new("quiet").cluster_ip("10.96.0.20").port("tcp", Protocol::Tcp, 80, POD_PORT);
        world.write("services.yaml", &format!("{}{}{}{quiet}", node(), web(), slices("web", &[&one, &two])))?;
        let _agent = started(world, &["--traffic-metrics", "real-servers", "--traffic-metrics-limit", "2"])?;
        let of_web = "service_namespace=\"default\",service_name=\"web\",service_port=\"tcp\"";
        answers(client.call(Protocol::Tcp, "10.96.0.10:80", 6)?)?;
        answers(world.ext().call(Protocol::Tcp, "172.18.0.2:30080", 4)?)?;

        // The kernel adds up what it counts every two seconds.
        let before = eventually(PATIENCE, || {
            let before = scraped(world)?;
            // The ClusterIP's and the node port's together.
            ensure!(value(&before, "kube_ipvs_service_connections_total", of_web)? == 10.0, "{before}");
            for direction in ["in", "out"] {
                let labels = format!("{of_web},direction=\"{direction}\"");
                // A handshake, a question or an answer, and an end.
                ensure!(value(&before, "kube_ipvs_service_packets_total", &labels)? >= 30.0, "{before}");
                ensure!(value(&before, "kube_ipvs_service_bytes_total", &labels)? >= 1500.0, "{before}");
            }
            ensure!(value(&before, "kube_ipvs_real_server_connections_total", of_web)? == 10.0, "{before}");
            Ok(before)
        })?;
        ensure!(value(&before, "kube_ipvs_service_connections_total", "service_name=\"quiet\"")? == 0.0, "{before}");
        for pod in [&one, &two] {
            let of_pod = format!("{of_web},real_server=\"{}:{POD_PORT}\"", pod.address(Family::V4));
            ensure!(value(&before, "kube_ipvs_real_server_connections_total", &of_pod)? > 0.0, "{before}");
        }
        // The counters are the kernel's.
        let table = world.node().ipvsadm(&["-ln", "--stats", "--exact"])?;
        let connections = table.lines().filter(|line| line.starts_with("TCP")).filter_map(|line| line.split_whitespace().nth(2));
        ensure!(connections.filter_map(|count| count.parse::<u32>().ok()).sum::<u32>() == 10, "{table}");

        world.node().exec(&["ipvsadm", "-C"])?;
        eventually(PATIENCE, || answers(client.call(Protocol::Tcp, "10.96.0.10:80", 3)?).map(drop))?;
        let after = eventually(PATIENCE, || {
            let after = scraped(world)?;
            ensure!(value(&after, "kube_ipvs_service_connections_total", of_web)? >= 13.0, "{after}");
            Ok(after)
        })?;
        ensure!(value(&after, "kube_ipvs_drifts_total", "")? >= 1.0, "{after}");
        ensure!(value(&after, "kube_ipvs_differing_seconds", "")? == 0.0, "{after}");
        Ok(())
    });
}

#[test]
fn what_kube_proxy_measures_is_measured_on_the_way_of_a_change() {
    World::test(|world| {
        let (one, _one) = serving(world, "one", On::Node)?;
        let (two, _two) = serving(world, "two", On::Node)?;
        world.write("services.yaml", &format!("{}{}", node(), web()))?;
        world.write("slice.yaml", &slice("web", Family::V4, [&one]).to_string())?;
        let _agent = started(world, &["--traffic-metrics", "off"])?;
        let before = scraped(world)?;
        ensure!(!before.contains("kube_ipvs_service_"), "{before}");
        ensure!(!before.contains("kubeproxy_network_programming_duration_seconds_count"), "nothing has been waited for:\n{before}");

        let now = world.node().exec(&["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"])?;
        let changed = slice("web", Family::V4, [&one, &two]).to_string();
        let annotated = changed.replacen(
            "metadata:",
            &format!("metadata:\n  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{}\"}}", now.trim()),
            1,
        );
        ensure!(annotated != changed, "{changed}");
        // The annotation has whole seconds here, and what was before the start does not count.
        std::thread::sleep(Duration::from_millis(1100));
        world.write("slice.yaml", &annotated)?;
        let after = eventually(PATIENCE, || {
            let after = scraped(world)?;
            value(&after, "kubeproxy_network_programming_duration_seconds_count", "IPv4")?;
            Ok(after)
        })?;
        ensure!(value(&after, "kubeproxy_network_programming_duration_seconds_sum", "IPv4")? >= 1.0, "{after}");
        ensure!(value(&after, "kubeproxy_network_programming_duration_seconds_count", "")? == 1.0, "{after}");
        let rose = |name: &str, labels: &str| -> Result {
            let (before, after) = (value(&before, name, labels).unwrap_or(0.0), value(&after, name, labels)?);
            ensure!(after > before, "{name}: {before} and {after}");
            Ok(())
        };
        rose("kubeproxy_sync_proxy_rules_endpoint_changes_total", "")?;
        for family in Family::ALL {
            let family = format!("ip_family=\"{family}\"");
            rose("kubeproxy_sync_proxy_rules_duration_seconds_count", &family)?;
            rose("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", &family)?;
            rose("kubeproxy_sync_proxy_rules_last_timestamp_seconds", &family)?;
            let queued = value(&after, "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", &family)?;
            let synced = value(&after, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", &family)?;
            ensure!(queued <= synced, "what was asked for is done: {queued} and {synced}");
        }
        for pending in ["endpoint", "service"] {
            ensure!(value(&after, &format!("kubeproxy_sync_proxy_rules_{pending}_changes_pending"), "")? == 0.0, "{after}");
        }
        ensure!(value(&after, "kubeproxy_proxy_healthz_total", "code=\"200\"")? >= 1.0, "{after}");
        let started = value(&after, "process_start_time_seconds", "")?;
        let now: f64 = world.node().exec(&["date", "+%s"])?.trim().parse().context("what is the time?")?;
        ensure!((0.0..3600.0).contains(&(now - started + 1.0)), "{started} and {now}");
        Ok(())
    });
}

//! What the deciding crates cost, without a kernel. `README.md` beside this file says what each number means.

#![expect(clippy::unwrap_used, reason = "a benchmark stops where it fails")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use desired::object::EndpointSlice;
use desired::{Config, Index, InterfaceAddress, Ledger, ServiceName};
use k8s_openapi::api::discovery::v1;
use model::{Family, Protocol, Scope, State, VirtualServerKey};
use plan::{Ownership, plan};
use serde_json::{from_value, json};
use wire::ipvs::{Ipvs, parse_dest, parse_service};
use wire::{Batch, Body, Decoded, Messages};

/// Endpoints of each Service, where their number is not what is measured.
const ENDPOINTS: usize = 10;
/// The most endpoints that the controller puts into one EndpointSlice.
const SLICE: usize = 100;

fn name(service: usize) -> ServiceName {
    ServiceName::new("shop", &format!("web-{service}"))
}

fn address(network: u32, host: usize) -> IpAddr {
    Ipv4Addr::from_bits(network + u32::try_from(host).unwrap()).into()
}

fn cluster_ip(service: usize) -> IpAddr {
    address(0x0a60_0001, service)
}

/// Slice number `slice` of `service`, whose first endpoint is ready or not, and all others are.
fn endpoint_slice(service: usize, slice: usize, endpoints: usize, first_ready: bool) -> EndpointSlice {
    let endpoint = |number: usize| {
        json!({
            "addresses": [address(0x0af4_0001, service * ENDPOINTS + slice * SLICE + number)],
            "conditions": {"ready": number > 0 || first_ready},
            "nodeName": format!("node-{}", number % 10),
        })
    };
    from_value(json!({
        "metadata": {
            "namespace": "shop",
            "name": format!("web-{service}-{slice}"),
            "labels": {"kubernetes.io/service-name": format!("web-{service}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// A node that has seen `services` Services, each with a ClusterIP, a node port and so many endpoints.
fn node(services: usize, endpoints: usize) -> (Index, Ledger) {
    let mut index = Index::new(Config::new("node-1"));
    let mut ledger = Ledger::new(index.config());
    let node = json!({"metadata": {"name": "node-1"}, "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.11"}]}});
    index.apply_node(&from_value(node).unwrap());
    index.set_interfaces(vec![InterfaceAddress::new("eth0", "172.18.0.11".parse().unwrap())]);
    for service in 0..services {
        let object = json!({
            "metadata": {"namespace": "shop", "name": format!("web-{service}")},
            "spec": {
                "clusterIP": cluster_ip(service),
                "type": "NodePort",
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 20_000 + service}],
            },
        });
        index.apply_service(&from_value(object).unwrap()).unwrap();
        for slice in 0..endpoints.div_ceil(SLICE) {
            let endpoints = (endpoints - slice * SLICE).min(SLICE);
            index.apply_slice(&endpoint_slice(service, slice, endpoints, true)).unwrap();
        }
    }
    settle(&mut index, &mut ledger);
    (index, ledger)
}

/// What the agent does with everything that is dirty.
fn settle(index: &mut Index, ledger: &mut Ledger) -> Scope {
    let mut scope = Scope::default();
    for name in index.take_dirty() {
        scope.extend(ledger.set(&name, index.fragment(&name)));
    }
    scope
}

/// Recorded EndpointSlices from the API server's JSON: what the agent reads of them, and all that is in them.
fn decode(criterion: &mut Criterion) {
    let list: serde_json::Value = serde_json::from_str(include_str!("../tests/recorded/endpointslices.json")).unwrap();
    let texts: Vec<_> = list.get("items").unwrap().as_array().unwrap().iter().map(ToString::to_string).collect();
    assert!(texts.len() > 10);
    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Bytes(texts.iter().map(|text| u64::try_from(text.len()).unwrap()).sum()));
    group.bench_function("read", |bencher| {
        bencher.iter(|| texts.iter().for_each(|text| drop(black_box(serde_json::from_str::<EndpointSlice>(text).unwrap()))));
    });
    group.bench_function("whole", |bencher| {
        bencher.iter(|| texts.iter().for_each(|text| drop(black_box(serde_json::from_str::<v1::EndpointSlice>(text).unwrap()))));
    });
}

fn fragment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("desired/fragment");
    for endpoints in [5, 1_000] {
        let (index, _) = node(1, endpoints);
        let name = name(0);
        assert_eq!(index.fragment(&name).unwrap().frontends().len(), 2);
        group.throughput(Throughput::Elements(u64::try_from(endpoints).unwrap()));
        group.bench_function(BenchmarkId::from_parameter(endpoints), |bencher| bencher.iter(|| index.fragment(black_box(&name))));
    }
}

fn complete(criterion: &mut Criterion) {
    let (_, ledger) = node(1_000, ENDPOINTS);
    assert_eq!(ledger.complete().virtual_servers.len(), 2_000);
    criterion.bench_function("desired/complete/1000", |bencher| bencher.iter(|| ledger.complete()));
}

/// One endpoint turns unready or ready again, among few Services and among many.
fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    for services in [100, 10_000] {
        let (mut index, mut ledger) = node(services, ENDPOINTS);
        let mut observed = ledger.complete();
        let service = services / 2;
        let slices = [false, true].map(|ready| endpoint_slice(service, 0, ENDPOINTS, ready));
        let mut turns = slices.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                index.apply_slice(turns.next().unwrap()).unwrap();
                let scope = settle(&mut index, &mut ledger);
                let plan = plan(&ledger.desired(&scope), &observed.restricted_to(&scope), &Ownership::Scope);
                assert_eq!(plan.len(), 2, "the Service's two virtual servers lose or gain a real server");
                plan.steps().for_each(|step| step.apply_to(&mut observed));
            });
        });
    }
}

fn plans(criterion: &mut Criterion) {
    let (mut index, mut ledger) = node(1_000, ENDPOINTS);
    let observed = ledger.complete();
    index.apply_slice(&endpoint_slice(500, 0, ENDPOINTS, false)).unwrap();
    settle(&mut index, &mut ledger);
    let changed = ledger.complete();
    let nothing = State::default();
    let ownership = Ownership::Node { excluded: &[] };

    let mut group = criterion.benchmark_group("plan/1000");
    for (name, desired, observed, is_empty) in
        [("equal", &observed, &observed, true), ("changed", &changed, &observed, false), ("first", &observed, &nothing, false)]
    {
        assert_eq!(plan(desired, observed, &ownership).is_empty(), is_empty);
        group.bench_function(name, |bencher| bencher.iter(|| plan(black_box(desired), black_box(observed), &ownership)));
    }
}

/// The messages that make `services` services with their dests, as `kernel` sends them.
fn encode(batch: &mut Batch, state: &State) {
    let ipvs = Ipvs::new(32);
    let mut seq = 0;
    for (key, server) in &state.virtual_servers {
        seq += 1;
        ipvs.new_service(batch, seq, key, &server.config).unwrap();
        for (real, server) in &server.real_servers {
            seq += 1;
            ipvs.new_dest(batch, seq, key, real, server).unwrap();
        }
    }
}

fn codec(criterion: &mut Criterion) {
    let (_, ledger) = node(1_000, ENDPOINTS);
    let state = ledger.complete();
    let mut batch = Batch::default();
    encode(&mut batch, &state);
    assert_eq!(batch.messages(), 2_000 * (1 + ENDPOINTS));

    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Elements(u64::try_from(batch.messages()).unwrap()));
    group.bench_function("encode", |bencher| {
        bencher.iter_batched_ref(
            || Batch::with_capacity(batch.len()),
            |batch| encode(batch, black_box(&state)),
            BatchSize::LargeInput,
        );
    });

    let (services, dests) = dumps(&state);
    assert_eq!((known_services(&services), known_dests(&dests)), (2_000, 20_000));
    group.throughput(Throughput::Elements(u64::try_from(services.messages()).unwrap()));
    group.bench_function("decode/services", |bencher| bencher.iter(|| known_services(&services)));
    group.throughput(Throughput::Elements(u64::try_from(dests.messages()).unwrap()));
    group.bench_function("decode/dests", |bencher| bencher.iter(|| known_dests(&dests)));
}

/// What lists the state: the kernel uses the attributes that make an object, and adds counters.
fn dumps(state: &State) -> (Batch, Batch) {
    let ipvs = Ipvs::new(32);
    let (mut services, mut dests) = (Batch::default(), Batch::default());
    let anything = VirtualServerKey::address(cluster_ip(0), Protocol::Tcp, 80);
    for (key, server) in &state.virtual_servers {
        ipvs.new_service(&mut services, 1, key, &server.config).unwrap();
        for (real, server) in &server.real_servers {
            ipvs.new_dest(&mut dests, 1, &anything, real, server).unwrap();
        }
    }
    (services, dests)
}

/// How many services a dump has.
fn known_services(dump: &Batch) -> usize {
    payloads(dump).filter(|payload| matches!(parse_service(payload), Ok(Decoded::Known(_)))).count()
}

/// How many dests a dump has.
fn known_dests(dump: &Batch) -> usize {
    payloads(dump).filter(|payload| matches!(parse_dest(payload, Family::V4), Ok(Decoded::Known(_)))).count()
}

fn payloads(batch: &Batch) -> impl Iterator<Item = &[u8]> {
    Messages::new(batch.as_bytes()).filter_map(|message| match message.unwrap().body {
        Body::Data(payload) => Some(payload),
        _ => None,
    })
}

criterion_group!(benches, decode, fragment, complete, change, plans, codec);
criterion_main!(benches);

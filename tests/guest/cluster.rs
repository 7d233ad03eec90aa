//! The agent against an API server: the double of one, which answers as a recorded kube-apiserver does.

use std::time::Duration;

use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{NODE_V4, On, Protocol, World, answers, eventually, shares};

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn an_api_server_is_followed_through_changes_and_its_own_restart() {
    World::test(|world| {
        let pods = [world.pod("a", On::Node)?, world.pod("b", On::Node2)?];
        let _servers = [pods[0].serve(8080)?, pods[1].serve(8080)?];
        let slice = |pods: &[&testkit::Pod]| {
            let slice = EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080);
            pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
        };
        world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())?;
        world.write("web.yaml", &Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, 8080).to_string())?;
        world.write("endpoints.yaml", &slice(&[&pods[0]]))?;

        let mut server = world.api_server(&[])?;
        let _agent = world.agent_of_cluster(&[])?;
        let call = |count| answers(world.node().call(Protocol::Tcp, "10.96.0.10:80", count)?);
        eventually(PATIENCE, || call(1).map(drop))?;
        assert_eq!(shares(&call(4)?).len(), 1, "only pod a is an endpoint");

        world.write("endpoints.yaml", &slice(&[&pods[0], &pods[1]]))?;
        eventually(PATIENCE, || {
            let answers = call(4)?;
            let shares = shares(&answers);
            anyhow::ensure!(shares.len() == 2, "{shares:?}");
            Ok(())
        })?;
        let status = world.kube_ipvs(&["status"])?;
        assert!(status.contains("TCP  10.96.0.10:80 rr (default/web:http)"), "{status}");

        // The API server goes away: what the kernel holds keeps serving. Another one comes, with other objects.
        server.kill()?;
        assert_eq!(call(4)?.len(), 4);
        world.write("endpoints.yaml", &slice(&[&pods[1]]))?;
        let _server = world.api_server(&["--resource-version", "1000"])?;
        eventually(PATIENCE, || {
            let answers = call(4)?;
            let shares = shares(&answers);
            anyhow::ensure!(shares.len() == 1 && shares.contains_key("b"), "{shares:?}");
            Ok(())
        })
    });
}

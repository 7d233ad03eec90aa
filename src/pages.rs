//! What the metrics server answers beside metrics: `/proxyMode`, `/configz` and `/healthz`, as kube-proxy does.

use std::rc::Rc;

use hyper::StatusCode;
use serde_json::json;
use tokio::sync::watch;

use crate::http::Answer;
use crate::settings::Effective;

/// The pages.
#[derive(Clone)]
pub(crate) struct Pages {
    /// What holds at present.
    pub(crate) effective: watch::Receiver<Rc<Effective>>,
}

impl Pages {
    /// The answer to a request for `path`, if it is one of these pages.
    pub(crate) fn answer(&self, path: &str) -> Option<Answer> {
        let plain = |body: &str| Answer {
            status: StatusCode::OK,
            content_type: "text/plain; charset=utf-8",
            body: body.as_bytes().to_vec(),
            header: None,
        };
        match path {
            "/proxyMode" => Some(plain("ipvs")),
            // Of the server, and not of the node: that is asked elsewhere.
            "/healthz" => Some(plain("ok")),
            "/configz" => {
                let effective = self.effective.borrow();
                let body = json!({
                    "kubeproxy.config.k8s.io": effective.as_kube_proxy_has_it(),
                    "kube-ipvs.io": effective.as_fields(),
                });
                Some(Answer::json(StatusCode::OK, &body))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Given;

    #[test]
    fn what_holds_is_told_in_kube_proxys_words_and_in_ours() {
        let arguments = "kube-ipvs run --scheduler wlc --cluster-cidr 10.244.0.0/16,fd00::/8 --drain-timeout 5m --masquerade-all";
        let given = Given::new(arguments.split(' ').map(Into::into).collect(), "run");
        let pages = Pages { effective: watch::channel(Rc::new(given.effective().unwrap())).1 };
        let body: serde_json::Value = serde_json::from_slice(&pages.answer("/configz").unwrap().body).unwrap();
        let kube_proxy = &body["kubeproxy.config.k8s.io"];
        assert_eq!(kube_proxy["kind"], "KubeProxyConfiguration");
        assert_eq!((&kube_proxy["ipvs"]["scheduler"], &kube_proxy["mode"]), (&json!("wlc"), &json!("ipvs")));
        assert_eq!(
            (&kube_proxy["clusterCIDR"], &kube_proxy["iptables"]["masqueradeAll"]),
            (&json!("10.244.0.0/16,fd00::/8"), &json!(true))
        );
        let own = &body["kube-ipvs.io"];
        assert_eq!((&own["kind"], &own["drainTimeout"]), (&json!("KubeIPVSConfiguration"), &json!("5m")));
        assert_eq!((&own["clusterCidr"], &own["vipBinding"]), (&json!(["10.244.0.0/16", "fd00::/8"]), &json!("route")));
    }

    #[test]
    fn other_pages_are_as_kube_proxy_has_them() {
        let given = Given::new(["kube-ipvs", "run"].map(Into::into).into(), "run");
        let pages = Pages { effective: watch::channel(Rc::new(given.effective().unwrap())).1 };
        assert_eq!(pages.answer("/proxyMode").unwrap().body, b"ipvs");
        assert_eq!(pages.answer("/healthz").unwrap().body, b"ok");
        assert!(pages.answer("/metrics").is_none());
    }
}

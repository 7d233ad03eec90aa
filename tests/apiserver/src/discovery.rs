//! Discovery: enough for kubectl and client libraries to find the resources.

use crate::resource::Resource;

/// The body for a discovery or health path.
pub(crate) fn answer(path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    Some(match path {
        "/version" => concat!(
            r#"{"major":"1","minor":"36","gitVersion":"v1.36.0","gitCommit":"","gitTreeState":"clean","buildDate":"2026-01-01T00:00:00Z","#,
            r#""goVersion":"","compiler":"","platform":"linux/amd64"}"#
        )
        .to_owned(),
        "/healthz" | "/livez" | "/readyz" => "ok".to_owned(),
        "/api" => r#"{"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[]}"#.to_owned(),
        "/apis" => {
            let groups: Vec<String> = groups().map(group).collect();
            format!(r#"{{"kind":"APIGroupList","apiVersion":"v1","groups":[{}]}}"#, groups.join(","))
        }
        "/api/v1" => resources(""),
        path => {
            let rest = path.strip_prefix("/apis/")?;
            let name = rest.strip_suffix("/v1").unwrap_or(rest);
            let found = groups().find(|group| *group == name)?;
            if name == rest { group(found) } else { resources(found) }
        }
    })
}

fn groups() -> impl Iterator<Item = &'static str> {
    Resource::ALL.into_iter().map(Resource::group).filter(|group| !group.is_empty())
}

fn group(name: &str) -> String {
    let version = format!(r#"{{"groupVersion":"{name}/v1","version":"v1"}}"#);
    format!(r#"{{"kind":"APIGroup","apiVersion":"v1","name":"{name}","versions":[{version}],"preferredVersion":{version}}}"#)
}

fn resources(group: &str) -> String {
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    let resources: Vec<String> = Resource::ALL
        .into_iter()
        .filter(|resource| resource.group() == group)
        .map(|resource| {
            let (plural, kind, namespaced) = (resource.plural(), resource.kind(), resource.namespaced());
            let singular = kind.to_lowercase();
            let short = if resource == Resource::Services { r#","shortNames":["svc"]"# } else { "" };
            let verbs = match resource {
                Resource::Events => r#"["create","get","list","watch"]"#,
                Resource::Pods => r#"["create","delete","get","list","patch","watch"]"#,
                _ => r#"["delete","get","list","patch","watch"]"#,
            };
            format!(
                r#"{{"name":"{plural}","singularName":"{singular}","namespaced":{namespaced},"kind":"{kind}","verbs":{verbs}{short}}}"#
            )
        })
        .collect();
    format!(r#"{{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"{version}","resources":[{}]}}"#, resources.join(","))
}

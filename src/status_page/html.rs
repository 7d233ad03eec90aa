//! The page itself.

use std::fmt::{self, Write as _};

use crate::top::app::{App, Page};
use crate::top::figures::{Glyphs, short};
use crate::top::sample::{Load, Sample, Server, Service, SortBy};

/// How many looks a trend has.
const TREND: usize = 30;

/// Names and states are broken where they do not fit, and figures never, so that the tables fit into 1,000 pixels.
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:14px/1.45 system-ui,sans-serif;margin:1.5em auto;max-width:95em;padding:0 1em}\
h1{font-size:1.3em;margin:0 0 .3em;overflow-wrap:anywhere}\
p{margin:.2em 0}\
a{color:inherit}\
table{border-collapse:collapse;width:100%;margin-top:1em}\
th,td{padding:.3em .5em;text-align:right;vertical-align:baseline;border-bottom:1px solid #8884;white-space:nowrap;font-variant-numeric:tabular-nums}\
th:first-child,td:first-child,.text,.share{text-align:left}\
td:first-child,td.text{white-space:normal;overflow-wrap:anywhere}\
td:first-child{min-width:12em}\
td.text{min-width:7em}\
td small{display:block;opacity:.75}\
th[aria-sort] a{font-weight:bold;text-decoration:none}\
th a{font-weight:normal}\
.trend{font-family:monospace;white-space:pre;text-align:left}\
.bad{color:#c00}.drains{color:#a60}.foreign{opacity:.6}\
meter{width:5em;vertical-align:middle}\
@media(max-width:80em){td.trend{font-size:.6em}}\
@media(prefers-color-scheme:dark){.bad{color:#f77}.drains{color:#fb5}}";

/// A text that is in the page as what it is, whatever is in it.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// A text as a part of a path.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// The text of which `path` is the form in paths; `None` where it is none.
pub(super) fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                let (high, low) = (digit()?, digit()?);
                high * 16 + low
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// The name of a column in paths.
pub(super) const fn column(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Name => "name",
        SortBy::Active => "active",
        SortBy::Connections => "connections",
        SortBy::Packets => "packets",
        SortBy::Bytes => "bytes",
    }
}

/// The page that `app` is at.
pub(super) fn render(app: &App) -> String {
    let mut page = String::with_capacity(16 << 10);
    // A String takes all that is written.
    let _ = write(&mut page, app);
    page
}

fn write(out: &mut String, app: &App) -> fmt::Result {
    let node = app.sample.as_ref().and_then(|sample| sample.agent.as_ref()).map_or("kube-ipvs", |(node, _)| node);
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"refresh\" content=\"{}\"><title>{} - kube-ipvs</title><style>{STYLE}</style></head><body>\n",
        app.delay.as_secs().max(1),
        Escaped(node)
    )?;
    match &app.page {
        Page::Servers(name) => write_servers(out, app, name)?,
        Page::Services | Page::Help(_) => write_services(out, app)?,
    }
    out.push_str("</body></html>\n");
    Ok(())
}

fn write_head(out: &mut String, app: &App) -> fmt::Result {
    if let Some(trouble) = &app.trouble {
        write!(out, "<p class=\"bad\">This is what was seen last: {}</p>", Escaped(trouble))?;
    }
    let Some(Sample { agent, totals, .. }) = &app.sample else { return Ok(()) };
    match agent {
        Some((node, version)) => writeln!(out, "<h1>{}</h1><p>kube-ipvs {}</p>", Escaped(node), Escaped(version))?,
        None => writeln!(out, "<h1>kube-ipvs</h1><p class=\"bad\">The agent does not answer: no names, drains or drift.</p>")?,
    }
    let Load { active, inactive, connections, packets_in, packets_out, bytes_in, bytes_out } = totals.load;
    let drifted = if totals.drifted > 0 { " class=\"bad\"" } else { "" };
    writeln!(
        out,
        "<p>{} virtual servers ({} foreign), {} real servers ({} draining), <span{drifted}>{} drifted</span></p>\
         <p>{active} active and {inactive} inactive connections; a second: {} connections, packets {} in and {} out, bytes {} in and {} out \
         <span class=\"trend\">{}</span></p>",
        totals.virtual_servers,
        totals.foreign,
        totals.real_servers,
        totals.draining,
        totals.drifted,
        short(connections),
        short(packets_in),
        short(packets_out),
        short(bytes_in),
        short(bytes_out),
        app.total().line(Glyphs::Unicode, TREND)
    )
}

fn write_services(out: &mut String, app: &App) -> fmt::Result {
    write_head(out, app)?;
    out.push_str("<table><thead><tr>");
    let title = |out: &mut String, sort: SortBy, text: &str| {
        let (sorted, order) = (sort == app.sort, if sort == SortBy::Name { "ascending" } else { "descending" });
        let state = if sorted { format!(" aria-sort=\"{order}\"") } else { String::new() };
        write!(out, "<th{state}><a href=\"/by/{}\">{text}</a></th>", column(sort))
    };
    title(out, SortBy::Name, "Service")?;
    out.push_str("<th>Servers</th>");
    title(out, SortBy::Active, "Active")?;
    out.push_str("<th>Inactive</th>");
    title(out, SortBy::Connections, "Conn/s")?;
    title(out, SortBy::Packets, "Packets/s")?;
    title(out, SortBy::Bytes, "Bytes/s")?;
    out.push_str("<th class=\"text\">Trend</th><th class=\"text\">State</th></tr></thead><tbody>\n");
    for service in app.services() {
        write_service(out, app, service)?;
    }
    out.push_str("</tbody></table>\n");
    Ok(())
}

fn write_service(out: &mut String, app: &App, service: &Service) -> fmt::Result {
    let class = match service {
        service if service.has_drifted() => "bad",
        service if service.draining() > 0 => "drains",
        service if service.foreign => "foreign",
        _ => "",
    };
    let Load { active, inactive, connections, .. } = service.load;
    let trend = app.history(&service.name).map(|history| history.line(Glyphs::Unicode, TREND)).unwrap_or_default();
    writeln!(
        out,
        "<tr class=\"{class}\"><td><a href=\"/service/{}\">{}</a></td><td>{}/{}</td><td>{active}</td><td>{inactive}</td><td>{}</td><td>{}</td>\
         <td>{}</td><td class=\"trend\">{trend}</td><td class=\"text\">{}</td></tr>",
        Encoded(&service.name),
        Escaped(&service.name),
        service.live(),
        service.servers.len(),
        short(connections),
        short(service.load.packets()),
        short(service.load.bytes()),
        Escaped(&service.state()),
    )
}

fn write_servers(out: &mut String, app: &App, name: &str) -> fmt::Result {
    writeln!(out, "<p><a href=\"/\">All Services</a></p><h1>{}</h1>", Escaped(name))?;
    if let Some(trouble) = &app.trouble {
        writeln!(out, "<p class=\"bad\">This is what was seen last: {}</p>", Escaped(trouble))?;
    }
    let Some(service) = app.service(name) else {
        out.push_str("<p>There is no such Service on this node.</p>\n");
        return Ok(());
    };
    for virtual_server in &service.virtual_servers {
        writeln!(out, "<p>{}</p>", Escaped(virtual_server))?;
    }
    for drift in &service.drift {
        writeln!(out, "<p class=\"bad\">{}</p>", Escaped(drift))?;
    }
    let trend = app.history(name).map(|history| history.line(Glyphs::Unicode, TREND * 2)).unwrap_or_default();
    writeln!(
        out,
        "<p>Bytes a second: {} in and {} out <span class=\"trend\">{trend}</span></p>\
         <table><thead><tr><th>Server</th><th>Weight</th><th>Active</th><th>Inactive</th>\
         <th class=\"share\">Share</th><th>Conn/s</th><th>Packets/s</th><th>Bytes/s</th><th class=\"text\">State</th></tr></thead><tbody>",
        short(service.load.bytes_in),
        short(service.load.bytes_out)
    )?;
    for server in app.servers(service) {
        write_server(out, service, server)?;
    }
    out.push_str("</tbody></table>\n");
    if service.servers.is_empty() {
        out.push_str("<p class=\"bad\">No real servers: clients are refused.</p>\n");
    }
    Ok(())
}

fn write_server(out: &mut String, service: &Service, server: &Server) -> fmt::Result {
    let class = match (&server.drift, server.draining) {
        (Some(_), _) => "bad",
        (None, Some(_)) => "drains",
        (None, None) => "",
    };
    let share = service.share(server);
    let place = match (&server.pod, &server.node) {
        (Some(pod), Some(node)) => format!("{pod} on {node}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => String::new(),
    };
    let Load { active, inactive, connections, .. } = server.load;
    writeln!(
        out,
        "<tr class=\"{class}\"><td>{}<small>{}</small></td><td>{}</td><td>{active}</td><td>{inactive}</td>\
         <td class=\"share\"><meter value=\"{share:.3}\"></meter> {:.0}%</td><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
        server.key,
        Escaped(&place),
        server.weight,
        share * 100.0,
        short(connections),
        short(server.load.packets()),
        short(server.load.bytes()),
        Escaped(&server.state()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{SHOP, kernel_table, told};
    use crate::status::view::Behind;
    use std::time::{Duration, Instant};

    fn app(page: Page) -> App {
        let mut app = App::new(SortBy::Active, Duration::from_secs(2), String::new(), Glyphs::Unicode, true);
        app.take(Sample::new(&join(kernel_table(), Some(&told()), Some(Sets::new())), Instant::now(), None));
        app.page = page;
        app
    }

    #[test]
    fn services_as_a_page() {
        insta::assert_snapshot!(render(&app(Page::Services)));
    }

    #[test]
    fn servers_as_a_page() {
        insta::assert_snapshot!(render(&app(Page::Servers(SHOP.to_owned()))));
    }

    #[test]
    fn nothing_that_the_cluster_says_is_markup() {
        const EVIL: &str = "\"><script>alert('x')</script>&";
        let mut view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        for row in &mut view.virtual_servers {
            if let Behind::Service(port) = &mut row.behind {
                port.service = format!("shop/{EVIL}");
                port.port = EVIL.to_owned();
            }
            for real in &mut row.real_servers {
                (real.pod, real.node) = (Some(EVIL.to_owned()), Some(EVIL.to_owned()));
            }
        }
        view.agent.as_mut().unwrap().node = EVIL.to_owned();
        let mut app = app(Page::Services);
        app.take(Sample::new(&view, Instant::now(), None));
        app.fail(EVIL.to_owned());
        let name = format!("shop/{EVIL}:{EVIL}");
        assert!(app.service(&name).is_some());
        for page in [Page::Services, Page::Servers(name), Page::Servers(EVIL.to_owned())] {
            app.page = page;
            let text = render(&app);
            assert!(!text.contains("<script") && !text.contains("alert('x')"), "{text}");
            assert!(text.contains("&lt;script&gt;"), "{text}");
        }
    }

    #[test]
    fn names_survive_the_way_through_a_path() {
        for name in ["shop/web:http", "TCP [fd00::1]:80", "a%b/ü?x=1#y"] {
            let path = Encoded(name).to_string();
            assert!(path.is_ascii() && !path.contains(['?', '#', ' ', '"', '<']), "{path}");
            assert_eq!(decoded(&path).as_deref(), Some(name));
        }
    }
}

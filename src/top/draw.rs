//! What the state looks like in a terminal.
//!
//! Lines are written column by column into a width that is known: in 80 columns everything that matters is there, and wider terminals get more.

use std::fmt::Write as _;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::app::{App, Asks, Page, Prompt};
use super::figures::{count, short};
use super::sample::{Load, Server, Service, SortBy};
use crate::status::view::in_words;

/// Lines above the list: who, how many, how busy, and what is typed or went wrong.
const HEAD: u16 = 4;
/// Less than this shows nothing that makes sense.
const SMALLEST: (u16, u16) = (40, 8);
/// From this width on there is room for what is nice to have.
const WIDE: usize = 100;

/// Draws `app`, and tells it how many lines its list has.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        frame.render_widget(Paragraph::new("too small: 40x8 or more"), area);
        return;
    }
    let width = usize::from(area.width);
    let at = |y: u16, height: u16| Rect { x: area.x, y: area.y.saturating_add(y), width: area.width, height };
    let mut head = head(app, width);
    head.push(message(app));
    frame.render_widget(Paragraph::new(head), at(0, HEAD));
    let body = at(HEAD, area.height.saturating_sub(HEAD + 1));
    let lines = match app.page.clone() {
        Page::Services => services(app, width, usize::from(body.height)),
        Page::Servers(name) => servers(app, &name, width, usize::from(body.height)),
        Page::Help(_) => help(),
    };
    frame.render_widget(Paragraph::new(lines), body);
    frame.render_widget(Paragraph::new(foot(app, width)), at(area.height.saturating_sub(1), 1));
}

fn head(app: &App, width: usize) -> Vec<Line<'static>> {
    let every = format!("every {}, by {}{}", in_tenths(app.delay), column(app.sort), if app.reversed { ", reversed" } else { "" });
    let Some(sample) = &app.sample else {
        return vec![Line::styled(format!("kube-ipvs top  {every}"), bold()), Line::raw("looking..."), Line::raw("")];
    };
    let who = match &sample.agent {
        Some((node, version)) => format!("{node}, agent {version}"),
        None => "no agent: no names, drains or drift".to_owned(),
    };
    let totals = &sample.totals;
    let mut counts = format!(
        "{} virtual servers ({} foreign), {} real servers ({} draining), {} drifted",
        totals.virtual_servers, totals.foreign, totals.real_servers, totals.draining, totals.drifted
    );
    if !app.filter.is_empty() {
        let _ = write!(counts, ", only {:?}", app.filter);
    }
    let Load { active, inactive, connections, packets_in, packets_out, bytes_in, bytes_out } = totals.load;
    let busy = format!(
        "{active} active, {inactive} inactive, {} conn/s, pkt/s {} in {} out, B/s {} in {} out ",
        short(connections),
        short(packets_in),
        short(packets_out),
        short(bytes_in),
        short(bytes_out)
    );
    let left = width.saturating_sub(busy.chars().count());
    let trend = app.total().line(app.glyphs, left.min(60));
    vec![
        Line::styled(format!("kube-ipvs top  {who}  {every}"), bold()),
        Line::styled(counts, if totals.drifted > 0 { coloured(app, Color::Red) } else { Style::new() }),
        Line::raw(format!("{busy}{trend}")),
    ]
}

/// What is typed, or what went wrong.
fn message(app: &App) -> Line<'static> {
    if let Some(Prompt { asks, typed, wrong }) = &app.prompt {
        let question = match asks {
            Asks::Filter => "Show Services with",
            Asks::Delay => "Look every",
        };
        let wrong = wrong.as_ref().map(|wrong| format!("   ({wrong})")).unwrap_or_default();
        return Line::styled(format!("{question}: {typed}_{wrong}"), bold());
    }
    match &app.trouble {
        Some(trouble) => Line::styled(format!("this is what was seen last: {trouble}"), coloured(app, Color::Red)),
        None => Line::raw(""),
    }
}

fn foot(app: &App, width: usize) -> Line<'static> {
    let keys = match app.page {
        Page::Services => "q quit  h help  Enter servers  / filter  a c p b n sort  R reverse  d delay",
        Page::Servers(_) => "q quit  h help  Esc back  a c p b n sort  R reverse  d delay",
        Page::Help(_) => "any of q, h, Esc or Enter: back",
    };
    Line::styled(fit(keys, width), Style::new().add_modifier(Modifier::REVERSED))
}

fn services(app: &mut App, width: usize, height: usize) -> Vec<Line<'static>> {
    let trend = if width >= WIDE { (width - 80).min(40) } else { 0 };
    let rest = if trend > 0 { trend + 1 } else { 0 };
    let name_width = width.saturating_sub(48 + rest);
    let row = |name: &str, [servers, active, inactive, connections, packets, bytes]: [&str; 6], trend_line: &str, flags: &str| {
        let mut line =
            format!("{} {servers:>7} {active:>6} {inactive:>6} {connections:>6} {packets:>6} {bytes:>6} ", fit(name, name_width));
        if trend > 0 {
            let _ = write!(line, "{} ", fit(trend_line, trend));
        }
        line.push_str(&fit(flags, 4));
        line
    };
    let titles = row(" SERVICE", ["SERVERS", "ACTIVE", "INACT", "CONN/S", "PKT/S", "BYTE/S"], "TREND", "");
    let mut lines = vec![Line::styled(titles, Style::new().add_modifier(Modifier::REVERSED))];
    let shown = height.saturating_sub(1);
    app.set_height(shown);
    let (services, selection) = (app.services(), app.selection());
    // The selected one is always seen.
    let first = selection.saturating_sub(shown.saturating_sub(1));
    for (index, service) in services.iter().enumerate().skip(first).take(shown) {
        let Load { active, inactive, connections, .. } = service.load;
        let servers = format!("{}/{}", service.live(), service.servers.len());
        let numbers =
            [count(active), count(inactive), short(connections), short(service.load.packets()), short(service.load.bytes())];
        let [a, b, c, d, e] = numbers.each_ref().map(String::as_str);
        let history = app.history(&service.name).map(|history| history.line(app.glyphs, trend)).unwrap_or_default();
        let marker = if index == selection { ">" } else { " " };
        let text = row(&format!("{marker}{}", service.name), [&servers, a, b, c, d, e], &history, &flags(service));
        let style = if index == selection { bold().add_modifier(Modifier::UNDERLINED) } else { Style::new() };
        lines.push(Line::styled(text, style.patch(colour_of(app, service))));
    }
    if services.is_empty() && app.sample.is_some() {
        lines.push(Line::raw(if app.filter.is_empty() {
            "there is no virtual server"
        } else {
            "no Service is called so; Esc shows all"
        }));
    }
    lines
}

/// One letter each: drifted, draining, empty, foreign.
fn flags(service: &Service) -> String {
    let flags = [(service.has_drifted(), '!'), (service.draining() > 0, 'D'), (service.live() == 0, 'E'), (service.foreign, 'F')];
    flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect()
}

fn colour_of(app: &App, service: &Service) -> Style {
    if service.has_drifted() {
        coloured(app, Color::Red)
    } else if service.draining() > 0 {
        coloured(app, Color::Yellow)
    } else if service.foreign {
        coloured(app, Color::DarkGray)
    } else {
        Style::new()
    }
}

fn servers(app: &mut App, name: &str, width: usize, height: usize) -> Vec<Line<'static>> {
    let Some(service) = app.service(name).cloned() else {
        return vec![Line::styled(name.to_owned(), bold()), Line::raw("is gone; Esc leads back")];
    };
    let mut lines = vec![Line::styled(service.name.clone(), bold())];
    // A Service of many addresses leaves room for its servers.
    let most = (height / 4).max(1);
    let more = service.virtual_servers.len().saturating_sub(most);
    lines.extend(
        service.virtual_servers.iter().take(most).map(|virtual_server| Line::raw(fit(&format!("  {virtual_server}"), width))),
    );
    if more > 0 {
        lines.push(Line::raw(format!("  and {more} more virtual servers")));
    }
    let drift =
        service.drift.iter().take(most).map(|drift| Line::styled(fit(&format!("  ! {drift}"), width), coloured(app, Color::Red)));
    lines.extend(drift);
    let Load { bytes_in, bytes_out, .. } = service.load;
    let busy = format!("  B/s {} in {} out ", short(bytes_in), short(bytes_out));
    let trend = app.history(name).map(|history| history.line(app.glyphs, width.saturating_sub(busy.chars().count() + 1).min(60)));
    lines.push(Line::raw(format!("{busy}{}", trend.unwrap_or_default())));

    let columns = Columns::of(width);
    let numbers = ["WT", "ACTIVE", "SHARE", "CONN/S", "BYTE/S"];
    let texts = Texts { server: "SERVER", place: "POD", numbers, bar: "", state: "STATE" };
    lines.push(Line::styled(columns.row(&texts), Style::new().add_modifier(Modifier::REVERSED)));
    let shown = height.saturating_sub(lines.len());
    app.set_height(shown);
    for server in app.servers(&service).into_iter().skip(app.scrolled).take(shown) {
        lines.push(server_line(app, &service, server, columns));
    }
    if service.servers.is_empty() {
        lines.push(Line::raw("  no real servers: clients are refused"));
    }
    lines
}

fn server_line(app: &App, service: &Service, server: &Server, columns: Columns) -> Line<'static> {
    let share = service.share(server);
    let place = match (&server.pod, &server.node) {
        (Some(pod), Some(node)) if columns.wide => format!("{pod} on {node}"),
        (Some(pod), _) => pod.clone(),
        (None, Some(node)) => format!("on {node}"),
        (None, None) => String::new(),
    };
    let state = match (&server.drift, server.draining) {
        _ if columns.wide => server.state(),
        (Some(_), _) => "drifted".to_owned(),
        (None, Some(left)) => format!("drain {}", in_words(left)),
        (None, None) => String::new(),
    };
    let numbers = [
        server.weight.to_string(),
        count(server.load.active),
        format!("{:.0}%", share * 100.0),
        short(server.load.connections),
        short(server.load.bytes()),
    ];
    let numbers = numbers.each_ref().map(String::as_str);
    let bar = app.glyphs.bar(share, Columns::BAR);
    let text = columns.row(&Texts { server: &server.key.to_string(), place: &place, numbers, bar: &bar, state: &state });
    let style = if server.drift.is_some() {
        coloured(app, Color::Red)
    } else if server.draining.is_some() {
        coloured(app, Color::Yellow)
    } else {
        Style::new()
    };
    Line::styled(text, style)
}

/// The columns of a list of servers.
#[derive(Clone, Copy)]
struct Columns {
    width: usize,
    wide: bool,
}

/// What stands in them.
struct Texts<'a> {
    server: &'a str,
    place: &'a str,
    numbers: [&'a str; 5],
    bar: &'a str,
    state: &'a str,
}

impl Columns {
    const BAR: usize = 10;

    const fn of(width: usize) -> Self {
        Self { width, wide: width >= WIDE }
    }

    fn row(self, texts: &Texts<'_>) -> String {
        let Texts { server, place, numbers: [weight, active, share, connections, bytes], bar, state } = texts;
        let line = if self.wide {
            format!(
                "{} {} {weight:>5} {active:>6} {share:>6} {} {connections:>6} {bytes:>6} {state}",
                fit(server, 28),
                fit(place, self.width / 4),
                fit(bar, Self::BAR)
            )
        } else {
            format!("{} {} {weight:>3} {active:>6} {share:>6} {connections:>6} {state}", fit(server, 21), fit(place, 18))
        };
        fit(&line, self.width)
    }
}

fn help() -> Vec<Line<'static>> {
    const HELP: &str = "  q, Ctrl-C        quit                    h, ?      this page
  Up, Down, k, j   select                  Enter     the servers of a Service
  PgUp, PgDn       a page                  Esc       back, or all Services again
  Home, End        first, last             space     look now
  /                only names with         d, s      how often to look

  Sort by   n name   a active connections   c new connections a second
            p packets a second   b bytes a second
  < >       the column beside              R         the other way round

  Flags     ! not as the agent wants it    D         servers are draining
            E nobody takes connections     F         another program's

  Rates are of the time since the look before; SHARE is of active connections.";
    HELP.lines().map(Line::raw).collect()
}

const fn column(sort: SortBy) -> &'static str {
    match sort {
        SortBy::Name => "name",
        SortBy::Active => "active connections",
        SortBy::Connections => "new connections a second",
        SortBy::Packets => "packets a second",
        SortBy::Bytes => "bytes a second",
    }
}

fn in_tenths(duration: std::time::Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// `text` in exactly `width` characters; what is cut off is marked.
fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return format!("{text:<width$}");
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        cut.push('~');
    }
    cut
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn coloured(app: &App, colour: Color) -> Style {
    if app.colours { Style::new().fg(colour) } else { Style::new() }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{kernel_table, told};
    use crate::top::app::Key;
    use crate::top::figures::Glyphs;
    use crate::top::sample::Sample;

    fn app(colours: bool) -> App {
        let mut app = App::new(SortBy::Active, Duration::from_secs(2), String::new(), Glyphs::Ascii, colours);
        let at = Instant::now();
        let mut view = join(kernel_table(), Some(&told()), Some(Sets::new()));
        let mut sample = Sample::new(&view, at, None);
        // Ever more of it.
        for second in 1..=5_u64 {
            app.take(sample.clone());
            for row in &mut view.virtual_servers {
                row.traffic.bytes_in += 1_000 * second * second;
                row.traffic.connections += second;
            }
            sample = Sample::new(&view, at + Duration::from_secs(second), Some(&sample));
        }
        app.take(sample);
        app
    }

    fn drawn(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        terminal
    }

    #[test]
    fn services_in_80_columns() {
        insta::assert_snapshot!(drawn(&mut app(false), 80, 24).backend());
    }

    #[test]
    fn services_in_120_columns() {
        insta::assert_snapshot!(drawn(&mut app(false), 120, 16).backend());
    }

    #[test]
    fn servers_of_a_service_in_80_columns() {
        let mut app = app(false);
        app.press(Key::Enter);
        insta::assert_snapshot!(drawn(&mut app, 80, 24).backend());
    }

    #[test]
    fn servers_of_a_service_in_120_columns() {
        let mut app = app(false);
        app.press(Key::Enter);
        insta::assert_snapshot!(drawn(&mut app, 120, 16).backend());
    }

    #[test]
    fn help_and_prompts() {
        let mut app = app(false);
        app.press(Key::Char('h'));
        insta::assert_snapshot!(drawn(&mut app, 80, 24).backend());
        app.press(Key::Escape);
        for key in [Key::Char('d'), Key::Char('x'), Key::Enter] {
            app.press(key);
        }
        let screen = drawn(&mut app, 80, 24).backend().to_string();
        assert!(screen.contains("Look every: x_   (expected 100ms to 1h"), "{screen}");
    }

    #[test]
    fn colours_are_there_unless_they_are_not_wanted() {
        let colours = |wanted| {
            let mut app = app(wanted);
            let terminal = drawn(&mut app, 80, 24);
            let cells = terminal.backend().buffer().content().iter();
            cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
        };
        assert!(colours(true) > 0);
        assert_eq!(colours(false), 0);
    }

    #[test]
    fn no_size_is_too_small_or_too_large_to_draw() {
        let mut app = app(true);
        for page in ["", "\n", "h"] {
            for key in page.chars() {
                app.press(if key == '\n' { Key::Enter } else { Key::Char(key) });
            }
            for (width, height) in [(1, 1), (39, 8), (40, 8), (79, 9), (99, 10), (100, 11), (500, 100)] {
                drawn(&mut app, width, height);
            }
        }
        let mut empty = App::new(SortBy::Name, Duration::from_secs(2), String::new(), Glyphs::Unicode, true);
        empty.fail("the kernel does not answer".to_owned());
        let screen = drawn(&mut empty, 80, 24).backend().to_string();
        assert!(screen.contains("looking...") && screen.contains("the kernel does not answer"), "{screen}");
    }
}

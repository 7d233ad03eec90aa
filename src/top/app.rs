//! The state of the full-screen view, and what keys and looks make of it. No terminal, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::arguments::delay;
use super::figures::Glyphs;
use super::sample::{Sample, Server, Service, SortBy};

/// For how many looks traffic is remembered: as many as the widest sparkline has characters.
const HISTORY: usize = 120;

/// What is shown, and how.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) sample: Option<Sample>,
    /// Why there was nothing new the last time.
    pub(crate) trouble: Option<String>,
    pub(crate) glyphs: Glyphs,
    pub(crate) colours: bool,
    pub(crate) delay: Duration,
    pub(crate) sort: SortBy,
    pub(crate) reversed: bool,
    pub(crate) filter: String,
    pub(crate) page: Page,
    pub(crate) prompt: Option<Prompt>,
    /// The Service that is selected, by name: others come and go around it.
    selected: Option<String>,
    /// The first line of the servers of a Service that is shown.
    pub(crate) scrolled: usize,
    /// How many lines the list had when it was last drawn.
    height: usize,
    total: History,
    histories: BTreeMap<String, History>,
}

/// Which page is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// All Services.
    Services,
    /// The servers of one, by its name.
    Servers(String),
    /// What keys do; and the page from which that was asked.
    Help(Box<Page>),
}

/// What is being typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) asks: Asks,
    pub(crate) typed: String,
    /// Why what was typed does not do.
    pub(crate) wrong: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    Filter,
    Delay,
}

/// What was pressed, in our own words: which library reads the keyboard is nothing to this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    Left,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
}

/// What a key asks of whoever reads the keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Stay,
    Quit,
    /// Look now.
    Refresh,
    /// Look so often from now on.
    Delay(Duration),
}

/// Bytes a second, the latest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(VecDeque<f64>);

impl History {
    fn add(&mut self, value: f64) {
        if self.0.len() >= HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The last of them, a character each.
    pub(crate) fn line(&self, glyphs: Glyphs, width: usize) -> String {
        glyphs.sparkline(self.0.iter().copied(), width)
    }
}

impl App {
    pub(crate) fn new(sort: SortBy, delay: Duration, filter: String, glyphs: Glyphs, colours: bool) -> Self {
        Self {
            sample: None,
            trouble: None,
            glyphs,
            colours,
            delay,
            sort,
            reversed: false,
            filter,
            page: Page::Services,
            prompt: None,
            selected: None,
            scrolled: 0,
            height: 1,
            total: History::default(),
            histories: BTreeMap::new(),
        }
    }

    /// Takes in what was seen.
    pub(crate) fn take(&mut self, sample: Sample) {
        self.total.add(sample.totals.load.bytes());
        // Of those that are gone nothing is remembered, so that what is does not grow for ever.
        let mut histories = std::mem::take(&mut self.histories);
        self.histories = sample
            .services
            .iter()
            .map(|service| {
                let mut history = histories.remove(&service.name).unwrap_or_default();
                history.add(service.load.bytes());
                (service.name.clone(), history)
            })
            .collect();
        self.sample = Some(sample);
        self.trouble = None;
    }

    /// Takes note that nothing could be seen; what was seen last stays.
    pub(crate) fn fail(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// The Services that pass the filter, in order.
    pub(crate) fn services(&self) -> Vec<&Service> {
        let wanted = self.filter.to_lowercase();
        let matches = |service: &&Service| wanted.is_empty() || service.name.to_lowercase().contains(&wanted);
        let mut services: Vec<_> = self.sample.iter().flat_map(|sample| &sample.services).filter(matches).collect();
        self.sort.sort(self.reversed, &mut services);
        services
    }

    /// The Service called `name`, which may be gone.
    pub(crate) fn service(&self, name: &str) -> Option<&Service> {
        self.sample.as_ref()?.services.iter().find(|service| service.name == name)
    }

    /// The servers of `service`, in order.
    pub(crate) fn servers<'a>(&self, service: &'a Service) -> Vec<&'a Server> {
        let mut servers: Vec<_> = service.servers.iter().collect();
        self.sort.sort_servers(self.reversed, &mut servers);
        servers
    }

    /// Where in [`Self::services`] the one is that is selected; the first where it is gone, or none has been.
    pub(crate) fn selection(&self) -> usize {
        let services = self.services();
        let selected = self.selected.as_ref();
        services.iter().position(|service| selected == Some(&service.name)).unwrap_or_default()
    }

    /// The traffic of the whole node.
    pub(crate) const fn total(&self) -> &History {
        &self.total
    }

    /// The traffic of the Service called `name`.
    pub(crate) fn history(&self, name: &str) -> Option<&History> {
        self.histories.get(name)
    }

    /// Takes note of how many lines there are for a list: pages are turned by as many.
    pub(crate) fn set_height(&mut self, height: usize) {
        self.height = height.max(1);
    }

    /// Takes in a key.
    pub(crate) fn press(&mut self, key: Key) -> Outcome {
        if key == Key::Interrupt {
            return Outcome::Quit;
        }
        if let Some(prompt) = self.prompt.take() {
            return self.type_into(prompt, key);
        }
        match (&self.page, key) {
            (Page::Help(back), Key::Escape | Key::Enter | Key::Left | Key::Backspace | Key::Char('q' | 'h' | '?' | ' ')) => {
                self.page = (**back).clone();
                Outcome::Stay
            }
            (Page::Help(_), _) => Outcome::Stay,
            (_, Key::Char('q')) => Outcome::Quit,
            (page, Key::Char('h' | '?')) => {
                self.page = Page::Help(Box::new(page.clone()));
                Outcome::Stay
            }
            (_, Key::Char(' ')) => Outcome::Refresh,
            (_, Key::Char('/')) => self.ask(Asks::Filter, self.filter.clone()),
            (_, Key::Char('d' | 's')) => self.ask(Asks::Delay, String::new()),
            (_, Key::Char(letter @ ('n' | 'a' | 'c' | 'p' | 'b' | 'R' | '<' | '>'))) => self.reorder(letter),
            (Page::Services, Key::Enter) => {
                if let Some(service) = self.services().get(self.selection()) {
                    let name = service.name.clone();
                    (self.selected, self.scrolled, self.page) = (Some(name.clone()), 0, Page::Servers(name));
                }
                Outcome::Stay
            }
            // Esc takes back what was chosen last.
            (Page::Services, Key::Escape) => {
                self.filter.clear();
                Outcome::Stay
            }
            (Page::Servers(_), Key::Escape | Key::Left | Key::Backspace) => {
                self.page = Page::Services;
                Outcome::Stay
            }
            _ => self.travel(key),
        }
    }

    fn reorder(&mut self, letter: char) -> Outcome {
        match letter {
            'n' => self.sort = SortBy::Name,
            'a' => self.sort = SortBy::Active,
            'c' => self.sort = SortBy::Connections,
            'p' => self.sort = SortBy::Packets,
            'b' => self.sort = SortBy::Bytes,
            'R' => self.reversed = !self.reversed,
            '<' => self.sort = self.sort.beside(false),
            _ => self.sort = self.sort.beside(true),
        }
        Outcome::Stay
    }

    fn travel(&mut self, key: Key) -> Outcome {
        let (from, length) = match &self.page {
            Page::Servers(name) => (self.scrolled, self.service(name).map_or(0, |service| service.servers.len())),
            Page::Services | Page::Help(_) => (self.selection(), self.services().len()),
        };
        // The last page of servers is not scrolled beyond; of Services each can be selected.
        let last = match self.page {
            Page::Servers(_) => length.saturating_sub(self.height),
            Page::Services | Page::Help(_) => length.saturating_sub(1),
        };
        let to = match key {
            Key::Up | Key::Char('k') => from.saturating_sub(1),
            Key::Down | Key::Char('j') => from.saturating_add(1),
            Key::PageUp => from.saturating_sub(self.height),
            Key::PageDown => from.saturating_add(self.height),
            Key::Home => 0,
            Key::End => last,
            _ => return Outcome::Stay,
        };
        let to = to.min(last);
        if let Page::Servers(_) = self.page {
            self.scrolled = to;
        } else {
            self.selected = self.services().get(to).map(|service| service.name.clone());
        }
        Outcome::Stay
    }

    fn ask(&mut self, asks: Asks, typed: String) -> Outcome {
        self.prompt = Some(Prompt { asks, typed, wrong: None });
        Outcome::Stay
    }

    fn type_into(&mut self, mut prompt: Prompt, key: Key) -> Outcome {
        /// Longer than any name, and shorter than a line that somebody has pasted by mistake.
        const LONGEST: usize = 128;
        match key {
            Key::Escape => return Outcome::Stay,
            Key::Enter => match (prompt.asks, delay(prompt.typed.trim())) {
                (Asks::Filter, _) => {
                    (self.filter, self.selected) = (prompt.typed, None);
                    self.page = Page::Services;
                    return Outcome::Stay;
                }
                (Asks::Delay, Ok(delay)) => {
                    self.delay = delay;
                    return Outcome::Delay(delay);
                }
                (Asks::Delay, Err(wrong)) => prompt.wrong = Some(wrong),
            },
            Key::Backspace => _ = prompt.typed.pop(),
            Key::Char(letter) if !letter.is_control() && prompt.typed.len() < LONGEST => prompt.typed.push(letter),
            _ => {}
        }
        self.prompt = Some(prompt);
        Outcome::Stay
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::{Sets, join};
    use crate::status::tests::{SHOP, kernel_table, told};
    use std::time::Instant;

    const FOREIGN: &str = "TCP 192.0.2.1:443";

    fn app() -> App {
        let mut app = App::new(SortBy::Active, Duration::from_secs(2), String::new(), Glyphs::Ascii, false);
        app.take(Sample::new(&join(kernel_table(), Some(&told()), Some(Sets::new())), Instant::now(), None));
        app
    }

    fn press(app: &mut App, keys: &str) -> Outcome {
        let key = |letter| match letter {
            '\n' => Key::Enter,
            '\x1b' => Key::Escape,
            '\x08' => Key::Backspace,
            'v' => Key::Down,
            '^' => Key::Up,
            letter => Key::Char(letter),
        };
        keys.chars().map(|letter| app.press(key(letter))).last().unwrap()
    }

    fn names(app: &App) -> Vec<&str> {
        app.services().iter().map(|service| service.name.as_str()).collect()
    }

    #[test]
    fn keys_sort_as_in_top() {
        let mut app = app();
        assert_eq!(names(&app), [SHOP, FOREIGN, "kube-system/kube-dns:dns"]);
        press(&mut app, "b");
        assert_eq!(names(&app), [FOREIGN, SHOP, "kube-system/kube-dns:dns"]);
        press(&mut app, "c");
        assert_eq!(names(&app)[0], "kube-system/kube-dns:dns");
        press(&mut app, "R");
        assert_eq!(names(&app)[2], "kube-system/kube-dns:dns");
        press(&mut app, "R<");
        assert_eq!(app.sort, SortBy::Active);
        press(&mut app, ">>");
        assert_eq!(app.sort, SortBy::Packets);
    }

    #[test]
    fn a_selection_stays_with_its_service_whatever_the_order() {
        let mut app = app();
        press(&mut app, "v");
        assert_eq!(names(&app)[app.selection()], FOREIGN);
        press(&mut app, "b");
        assert_eq!((app.selection(), names(&app)[app.selection()]), (0, FOREIGN));
        for _ in 0..10 {
            app.press(Key::PageDown);
        }
        assert_eq!(app.selection(), 2, "there is no further");
        app.press(Key::Home);
        app.press(Key::Up);
        assert_eq!(app.selection(), 0);
    }

    #[test]
    fn enter_leads_to_the_servers_and_escape_back() {
        let mut app = app();
        press(&mut app, "\n");
        assert_eq!(app.page, Page::Servers(SHOP.to_owned()));
        let servers = app.servers(app.service(SHOP).unwrap());
        assert_eq!(servers.iter().map(|server| server.load.active).collect::<Vec<_>>(), [3, 2]);
        press(&mut app, "?");
        assert!(matches!(&app.page, Page::Help(back) if **back == Page::Servers(SHOP.to_owned())));
        press(&mut app, "q");
        assert_eq!(app.page, Page::Servers(SHOP.to_owned()), "q leaves the help first");
        app.set_height(1);
        press(&mut app, "vvvv");
        assert_eq!(app.scrolled, 1, "two servers, of which one is seen");
        press(&mut app, "\x1b");
        assert_eq!((&app.page, app.selection()), (&Page::Services, 0));
        assert_eq!(press(&mut app, "q"), Outcome::Quit);
    }

    #[test]
    fn a_filter_is_typed_and_taken_back() {
        let mut app = app();
        press(&mut app, "/DNSx\x08");
        assert_eq!(app.prompt.as_ref().unwrap().typed, "DNS");
        assert_eq!(names(&app).len(), 3, "not before Enter");
        press(&mut app, "\n");
        assert_eq!(names(&app), ["kube-system/kube-dns:dns"]);
        press(&mut app, "\x1b");
        assert_eq!(names(&app).len(), 3);
        assert_eq!(press(&mut app, "/q"), Outcome::Stay, "a letter like any other here");
        assert_eq!(app.press(Key::Interrupt), Outcome::Quit);
    }

    #[test]
    fn a_delay_is_typed_and_what_is_none_is_said() {
        let mut app = app();
        assert_eq!(press(&mut app, "d0.5\n"), Outcome::Delay(Duration::from_millis(500)));
        assert_eq!(press(&mut app, "dx\n"), Outcome::Stay);
        assert!(app.prompt.as_ref().unwrap().wrong.as_ref().unwrap().contains("100ms"));
        press(&mut app, "\x1b");
        assert_eq!((app.delay, press(&mut app, " ")), (Duration::from_millis(500), Outcome::Refresh));
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut app = app();
        let sample = app.sample.clone().unwrap();
        for _ in 0..500 {
            app.take(sample.clone());
        }
        assert_eq!(app.history(SHOP).unwrap().0.len(), HISTORY);
        let view = join(kernel_table(), None, None);
        app.take(Sample::new(&view, Instant::now(), None));
        assert!(app.history(SHOP).is_none() && app.history("TCP 10.96.0.10:80").is_some());
        app.fail("the kernel is gone".to_owned());
        assert_eq!(names(&app).len(), 4, "what was seen last stays");
    }
}

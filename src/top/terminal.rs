//! The terminal and the clock: reads keys, looks now and then, and draws.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};

use super::app::{App, Key, Outcome};
use super::draw::draw;
use super::sample::Sample;
use crate::status::gather::Gatherer;

/// How long the keyboard is waited for before anything else has its turn.
const TURN: Duration = Duration::from_millis(50);

/// What the threads beside the keyboard's tell.
enum News {
    Seen(Box<Sample>),
    Failed(String),
    /// A signal to end.
    End,
}

/// What the thread that looks is told.
enum Order {
    Look,
    Delay(Duration),
}

/// Shows `app` in this terminal until somebody quits or `iterations` looks have been taken. The terminal is as it was afterwards.
///
/// # Errors
/// When the terminal cannot be used.
pub(crate) fn run(app: App, gatherer: Gatherer, iterations: Option<u64>) -> anyhow::Result<()> {
    let (news, told) = channel();
    let (orders, ordered) = channel();
    let delay = app.delay;
    end_by_signal(news.clone())?;
    thread::Builder::new()
        .name("look".to_owned())
        .spawn(move || look(gatherer, delay, &ordered, &news))
        .context("cannot start the thread that looks")?;
    let mut terminal = ratatui::try_init().context("cannot use this terminal; --batch prints plain text")?;
    let shown = show(&mut terminal, app, &told, &orders, iterations);
    ratatui::try_restore().context("cannot put the terminal back as it was")?;
    shown.context("the terminal has failed")
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut app: App,
    told: &Receiver<News>,
    orders: &Sender<Order>,
    iterations: Option<u64>,
) -> io::Result<()> {
    let mut looks = 0;
    let mut changed = true;
    loop {
        if changed {
            terminal.draw(|frame| draw(frame, &mut app))?;
        }
        changed = event::poll(TURN)?;
        if changed && let Some(key) = key(&event::read()?) {
            let order = match app.press(key) {
                Outcome::Quit => return Ok(()),
                Outcome::Stay => None,
                Outcome::Refresh => Some(Order::Look),
                Outcome::Delay(delay) => Some(Order::Delay(delay)),
            };
            if let Some(order) = order {
                // It looks as long as this thread listens.
                let _ = orders.send(order);
            }
        }
        while let Ok(news) = told.try_recv() {
            match news {
                News::Seen(sample) => {
                    looks += 1;
                    app.take(*sample);
                }
                News::Failed(trouble) => app.fail(trouble),
                News::End => return Ok(()),
            }
            changed = true;
        }
        if iterations.is_some_and(|iterations| looks >= iterations) {
            terminal.draw(|frame| draw(frame, &mut app))?;
            return Ok(());
        }
    }
}

/// Looks now, then whenever it is time or asked for, until nobody listens.
fn look(mut gatherer: Gatherer, mut delay: Duration, orders: &Receiver<Order>, news: &Sender<News>) {
    let mut before: Option<Sample> = None;
    loop {
        let begun = Instant::now();
        let told = match gatherer.view() {
            Ok(view) => {
                let sample = Sample::new(&view, Instant::now(), before.as_ref());
                before = Some(sample.clone());
                News::Seen(Box::new(sample))
            }
            Err(error) => News::Failed(format!("{error:#}")),
        };
        if news.send(told).is_err() {
            return;
        }
        loop {
            match orders.recv_timeout(delay.saturating_sub(begun.elapsed())) {
                Ok(Order::Delay(new)) => delay = new,
                Ok(Order::Look) | Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Has SIGTERM and SIGHUP end the program in order: a terminal that is left as it is cannot be typed in.
fn end_by_signal(news: Sender<News>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let (mut terminate, mut hang_up) = {
        let _guard = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        // Where nobody listens, it has ended.
        let _ = news.send(News::End);
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start the thread that waits for signals")?;
    Ok(())
}

fn key(event: &Event) -> Option<Key> {
    let Event::Key(pressed) = event else { return None };
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
    Some(match pressed.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char(_) if control => return None,
        KeyCode::Char(letter) => Key::Char(letter),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        // As Enter does, it leads further in.
        KeyCode::Right => Key::Enter,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

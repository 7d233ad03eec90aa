//! `kube-ipvs top`: Services by what they carry, live.
//!
//! [`sample`] makes Services of what `status` gathers, [`app`] is the state with what keys do to it, [`draw`] what that looks like, and [`plain`]
//! the same without a screen: all of them pure. [`terminal`] has the keyboard, the screen and the clock.

pub(crate) mod app;
mod arguments;
mod draw;
pub(crate) mod figures;
mod plain;
pub(crate) mod sample;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Instant;

pub(crate) use arguments::Top;

use crate::status::gather::{Gatherer, PATIENCE};
use app::App;
use figures::Glyphs;
use sample::Sample;

/// Shows Services until told to stop.
///
/// # Errors
/// When the kernel cannot be read, or the terminal cannot be used.
pub(crate) fn run(arguments: &Top) -> anyhow::Result<()> {
    let mut gatherer = Gatherer::new(Some(arguments.control_socket.clone()), PATIENCE);
    let variable = |name: &str| std::env::var(name).ok();
    let is_dumb = variable("TERM").is_none_or(|terminal| matches!(terminal.as_str(), "" | "dumb"));
    if arguments.batch || is_dumb || !(io::stdout().is_terminal() && io::stdin().is_terminal()) {
        return print(arguments, &mut gatherer);
    }
    // What cannot be read now is said in the terminal as it is, with the exit code that it deserves.
    gatherer.view()?;
    // Whatever it is set to (no-color.org), unless to nothing.
    let colours = variable("NO_COLOR").is_none_or(|value| value.is_empty());
    let app = App::new(arguments.sort, arguments.delay, arguments.filter.clone(), Glyphs::of_locale(variable), colours);
    terminal::run(app, gatherer, arguments.iterations)
}

fn print(arguments: &Top, gatherer: &mut Gatherer) -> anyhow::Result<()> {
    let mut before: Option<Sample> = None;
    let mut looks = 0;
    loop {
        let view = gatherer.view()?;
        let sample = Sample::new(&view, Instant::now(), before.as_ref());
        let mut text = Vec::new();
        if looks > 0 {
            writeln!(text)?;
        }
        plain::print(&mut text, &sample, arguments.sort, &arguments.filter)?;
        let mut out = io::stdout().lock();
        match out.write_all(&text).and_then(|()| out.flush()) {
            // Nobody reads it any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        before = Some(sample);
        looks += 1;
        if arguments.iterations.is_some_and(|iterations| looks >= iterations) {
            return Ok(());
        }
        thread::sleep(arguments.delay);
    }
}

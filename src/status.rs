//! `kube-ipvs status`: the kernel's table, as ipvsadm prints it, with the Services behind it.
//!
//! [`gather`] asks the kernel and, where one runs, the agent; [`join`] makes rows of what they say, which is a [`view`]; [`filter`] and
//! [`sort`] choose among them; [`text`] and [`document`] write them down. All but the first are pure.

mod arguments;
mod connections;
mod document;
pub(crate) mod filter;
pub(crate) mod gather;
mod ipvsadm;
pub(crate) mod join;
pub(crate) mod sort;
pub(crate) mod text;
pub(crate) mod view;

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use kernel::Connections;
use serde_json::json;

pub(crate) use arguments::Status;

use crate::control::Stage;
use crate::exit::{Ending, Exit, kernel_ending};
use arguments::Output;
use connections::Directory;
use filter::Filter;
use gather::Gatherer;
use text::{Notes, Style};
use view::View;

/// Moves to the top of a terminal and clears it from there.
const CLEAR: &str = "\x1b[H\x1b[J";

/// Prints the table.
///
/// # Errors
/// When the kernel cannot be read, standard output cannot be written, or only an agent could tell what is asked for and none answers.
pub(crate) fn run(arguments: &Status) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let printed = print_all(arguments, &mut out).and_then(|()| Ok(out.flush()?));
    match printed {
        // Nobody reads it any more.
        Err(error) if is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

fn print_all(arguments: &Status, out: &mut impl Write) -> anyhow::Result<()> {
    if arguments.timeout {
        return print_timeouts(arguments.output, out);
    }
    let filter = arguments.filters.filter();
    let asks = !(arguments.numeric || arguments.ipvsadm);
    let mut gatherer = Gatherer::new(asks.then(|| arguments.control_socket.clone()), Duration::ZERO);
    let mut said = None;
    let clears = arguments.watch.is_some() && io::stdout().is_terminal();
    loop {
        if arguments.ipvsadm {
            print_like_ipvsadm(arguments, &filter, out)?;
        } else {
            let mut view = gatherer.view()?;
            say(&view, &gatherer, &filter, &mut said)?;
            if clears {
                write!(out, "{CLEAR}")?;
            }
            if arguments.connection {
                print_connections(arguments, &view, &filter, out)?;
            } else {
                view.virtual_servers.retain(|row| filter.keeps(row));
                sort::sort(&mut view.virtual_servers, arguments.sort);
                print_view(arguments, &view, out).context("cannot print the table")?;
            }
        }
        let Some(period) = arguments.watch else { return Ok(()) };
        out.flush().context("cannot print the table")?;
        thread::sleep(period);
    }
}

/// Says on standard error, once, what is missing from the table.
fn say(view: &View, gatherer: &Gatherer, filter: &Filter, said: &mut Option<String>) -> anyhow::Result<()> {
    let sentence = match (gatherer.trouble(), view.agent.as_ref().map(|agent| agent.stage)) {
        (Some(trouble), _) if filter.needs_agent() => {
            let sentence = format!("only a running agent knows Services and what is desired: {trouble}");
            return Err(Ending::error(Exit::Failure, sentence));
        }
        (Some(trouble), _) => Some(format!("this is what the kernel knows; no names, drains or drift: {trouble}")),
        (None, Some(Stage::Starting)) => Some("the agent is starting: not all Services are known yet".to_owned()),
        (None, Some(Stage::OnSavedState)) => Some("the agent serves what was saved: not all Services are known yet".to_owned()),
        (None, Some(Stage::Complete) | None) => None,
    };
    if *said != sentence {
        if let Some(sentence) = &sentence {
            // The table is worth printing without it.
            let _ = writeln!(io::stderr(), "{sentence}");
        }
        *said = sentence;
    }
    Ok(())
}

fn print_view(arguments: &Status, view: &View, out: &mut impl Write) -> anyhow::Result<()> {
    let style = |notes| Style { columns: arguments.columns.columns(), notes, exact: arguments.exact };
    match arguments.output {
        Output::Text => style(Notes::Short).print(out, view)?,
        Output::Wide => style(Notes::Wide).print(out, view)?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut *out, &document::Table::of(view)).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Output::Yaml => {
            // Documents that follow each other are told apart.
            let start = if arguments.watch.is_some() { "---\n" } else { "" };
            write!(out, "{start}{}", serde_saphyr::to_string(&document::Table::of(view))?)?;
        }
    }
    Ok(())
}

fn print_like_ipvsadm(arguments: &Status, filter: &Filter, out: &mut impl Write) -> anyhow::Result<()> {
    if arguments.connection {
        connections::print_head(out)?;
        for connection in Connections::open().map_err(|error| kernel_ending(&error))? {
            connections::print(out, &connection.map_err(|error| kernel_ending(&error))?, &connections::Ends::default())?;
        }
        return Ok(());
    }
    let mut table = kernel::read_table().map_err(|error| kernel_ending(&error))?;
    ipvsadm::order(&mut table);
    let style = Style { columns: arguments.columns.columns(), notes: Notes::None, exact: arguments.exact };
    if let Some(key) = filter.key {
        // Of one virtual server it prints no version.
        table.virtual_servers.retain(|listing| listing.key == key);
        if table.virtual_servers.is_empty() {
            return Err(Ending::error(Exit::Failure, format!("there is no virtual server {key}")));
        }
        style.print_head(out)?;
    } else {
        writeln!(out, "IP Virtual Server version {} (size={})", table.version, table.connection_table_size)?;
        style.print_head(out)?;
    }
    Ok(table.virtual_servers.into_iter().try_for_each(|listing| style.print_row(out, &join::bare_row(listing)))?)
}

fn print_connections(arguments: &Status, view: &View, filter: &Filter, out: &mut impl Write) -> anyhow::Result<()> {
    let directory = Directory::new(view, filter);
    let mut first = true;
    match arguments.output {
        Output::Text | Output::Wide => connections::print_head(out)?,
        Output::Json => write!(out, "[")?,
        Output::Yaml => {}
    }
    for connection in Connections::open().map_err(|error| kernel_ending(&error))? {
        let connection = connection.map_err(|error| kernel_ending(&error))?;
        let Some(ends) = directory.find(&connection) else { continue };
        match arguments.output {
            Output::Text | Output::Wide => connections::print(out, &connection, &ends)?,
            Output::Json => {
                write!(out, "{}", if first { "\n" } else { ",\n" })?;
                serde_json::to_writer(&mut *out, &connections::Document::of(&connection, &ends)).map_err(io::Error::from)?;
            }
            Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&[connections::Document::of(&connection, &ends)])?)?,
        }
        first = false;
    }
    match arguments.output {
        Output::Json => writeln!(out, "\n]")?,
        Output::Yaml if first => writeln!(out, "[]")?,
        Output::Text | Output::Wide | Output::Yaml => {}
    }
    Ok(())
}

fn print_timeouts(output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    let kernel::Timeouts { tcp, tcp_fin, udp } = kernel::read_timeouts().map_err(|error| kernel_ending(&error))?;
    let document = json!({"tcpSeconds": tcp, "tcpFinSeconds": tcp_fin, "udpSeconds": udp});
    match output {
        Output::Text | Output::Wide => writeln!(out, "Timeout (tcp tcpfin udp): {tcp} {tcp_fin} {udp}")?,
        Output::Json => writeln!(out, "{document}")?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&document)?)?,
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;

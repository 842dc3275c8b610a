//! What is said when the command line cannot be parsed: one line that names the setting, never a secret.
//!
//! clap's own messages take several lines, know only the flag, and repeat the value.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// What to do about a command line that was not parsed into settings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Help or version was asked for: print this and exit 0.
    Asked(String),
    /// It is wrong: print this line and exit 2.
    Wrong(String),
}

/// Turns clap's `error` about `command`'s line into what to say.
pub(crate) fn refusal(command: &Command, error: &clap::Error) -> Refusal {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(ContextValue::Strings(texts)) => texts.first().map(String::as_str),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    let arg = find(command, argument);
    let name = arg.map_or_else(|| bare(argument).to_owned(), full_name);
    Refusal::Wrong(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Refusal::Asked(error.render().ansi().to_string());
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let reason = error
                .source()
                .map_or_else(|| "is not allowed here".to_owned(), ToString::to_string);
            let value = text(ContextKind::InvalidValue).unwrap_or_default();
            let choices = choices(error);
            match arg {
                Some(arg) if arg.is_hide_env_values_set() => format!("{name}: the value {reason}{choices}"),
                _ if value.is_empty() => format!("{name} is empty{choices}"),
                _ => format!("{name}: {value:?} {reason}{choices}"),
            }
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!("there is no argument {name}"),
        // What stands there may be a secret that lost its flag.
        ErrorKind::UnknownArgument => "an argument was not expected (see --help)".to_owned(),
        ErrorKind::InvalidSubcommand => "there is no such subcommand (see --help)".to_owned(),
        ErrorKind::MissingRequiredArgument => format!("{name} is not set"),
        ErrorKind::ArgumentConflict => format!("{name} cannot be used with what else was given"),
        ErrorKind::InvalidUtf8 => format!(
            "{} not valid UTF-8",
            if name.is_empty() { "an argument is" } else { "" }
        ),
        kind if name.is_empty() => format!("{kind} (see --help)"),
        kind => format!("{name}: {kind}"),
    })
}

fn choices(error: &clap::Error) -> String {
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(all)) if !all.is_empty() => format!(": choose {}", all.join(" or ")),
        _ => String::new(),
    }
}

/// `--listen-addr <ADDR>` or `--listen-addr=x` as `--listen-addr`: what follows may be a secret.
fn bare(argument: &str) -> &str {
    argument.split([' ', '=']).next().unwrap_or_default()
}

fn full_name(arg: &Arg) -> String {
    let flag = arg
        .get_long()
        .map_or_else(|| arg.get_id().to_string(), |long| format!("--{long}"));
    match arg.get_env() {
        Some(env) => format!("{} ({flag})", env.to_string_lossy()),
        None => flag,
    }
}

fn find<'a>(command: &'a Command, argument: &str) -> Option<&'a Arg> {
    let long = bare(argument).strip_prefix("--")?;
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
        .or_else(|| command.get_subcommands().find_map(|sub| find(sub, argument)))
}

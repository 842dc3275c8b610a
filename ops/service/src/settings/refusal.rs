//! The message when the command line cannot be parsed: one line that names the setting and never shows a secret.
//!
//! clap's own messages take several lines, name only the flag, and repeat the value.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command};

/// The line to print for clap's `error` about `command`'s command line. `None` if help or version was asked for.
pub(crate) fn refusal(command: &Command, error: &clap::Error) -> Option<String> {
    let argument = text(error, ContextKind::InvalidArg);
    let arg = find(command, argument);
    let name = arg.map_or_else(|| bare(argument).to_owned(), full_name);
    Some(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return None,
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => wrong_value(arg, &name, error),
        ErrorKind::UnknownArgument if argument.starts_with('-') => format!("unknown argument {name}"),
        // The argument is not shown: it may be a secret whose flag was left out.
        ErrorKind::UnknownArgument => "unexpected argument (see --help)".to_owned(),
        ErrorKind::InvalidSubcommand => "unknown subcommand (see --help)".to_owned(),
        ErrorKind::MissingRequiredArgument => format!("{name} is not set"),
        ErrorKind::ArgumentConflict if argument == text(error, ContextKind::PriorArg) => {
            format!("{name} is given twice")
        }
        ErrorKind::InvalidUtf8 if name.is_empty() => "an argument is not valid UTF-8".to_owned(),
        ErrorKind::InvalidUtf8 => format!("{name} is not valid UTF-8"),
        kind if name.is_empty() => format!("{kind} (see --help)"),
        kind => format!("{name}: {kind} (see --help)"),
    })
}

fn wrong_value(arg: Option<&Arg>, name: &str, error: &clap::Error) -> String {
    let value = text(error, ContextKind::InvalidValue);
    let reason = error
        .source()
        .map_or_else(|| "is not allowed here".to_owned(), ToString::to_string);
    let choices = choices(error);
    match arg {
        // The reason may repeat the value.
        Some(arg) if arg.is_hide_env_values_set() => format!("{name} is malformed"),
        _ if value.is_empty() => format!("{name} is empty{choices}"),
        _ => format!("{name}: {value:?} {reason}{choices}"),
    }
}

fn text(error: &clap::Error, kind: ContextKind) -> &str {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text,
        Some(ContextValue::Strings(texts)) => texts.first().map_or("", String::as_str),
        _ => "",
    }
}

fn choices(error: &clap::Error) -> String {
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(all)) if !all.is_empty() => format!(": choose {}", all.join(" or ")),
        _ => String::new(),
    }
}

/// Cuts `--listen-addr <ADDR>` or `--listen-addr=x` to `--listen-addr`: the rest may be a secret.
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use clap::{CommandFactory as _, Parser};

    use super::*;
    use crate::logging::LogArgs;
    use crate::settings::{Secret, duration};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        log: LogArgs,
        #[arg(long, env = "REFUSAL_TEST_ADDR", default_value = "127.0.0.1:1", global = true)]
        addr: SocketAddr,
        #[arg(long, env = "REFUSAL_TEST_WAIT", default_value = "15s", global = true, value_parser = duration)]
        wait: Duration,
        #[arg(long, env = "REFUSAL_TEST_SECRET", hide_env_values = true, global = true)]
        secret: Option<Secret>,
        #[arg(long, env = "REFUSAL_TEST_PIN", hide_env_values = true, global = true)]
        pin: Option<u8>,
        #[command(subcommand)]
        command: Option<Sub>,
    }

    #[derive(clap::Subcommand)]
    enum Sub {
        Show {
            #[arg(long)]
            first: Option<u32>,
        },
    }

    fn said(args: &[&str]) -> String {
        let all = std::iter::once("program").chain(args.iter().copied());
        let Err(error) = Cli::try_parse_from(all) else {
            panic!("{args:?} was accepted")
        };
        let line = refusal(&Cli::command(), &error).expect("a line");
        assert!(!line.contains('\n'), "{line:?}");
        line
    }

    #[test]
    fn wrong_values_are_named_with_variable_and_flag() {
        for (args, line) in [
            (
                ["--wait", "fast"],
                r#"REFUSAL_TEST_WAIT (--wait): "fast" is not a duration: write it like 15s, 5m, 1h or 30d"#,
            ),
            (
                ["--wait", "0"],
                r#"REFUSAL_TEST_WAIT (--wait): "0" must be longer than zero"#,
            ),
            (["--wait", ""], "REFUSAL_TEST_WAIT (--wait) is empty"),
            (
                ["--addr", "here"],
                r#"REFUSAL_TEST_ADDR (--addr): "here" invalid socket address syntax"#,
            ),
            (
                ["--log-format", "xml"],
                r#"LOG_FORMAT (--log-format): "xml" is not allowed here: choose text or json"#,
            ),
            (["--pin", "4711"], "REFUSAL_TEST_PIN (--pin) is malformed"),
        ] {
            assert_eq!(said(&args), line);
        }
    }

    #[test]
    fn other_slips_are_one_line_too_and_repeat_nothing_that_may_be_secret() {
        for (args, line) in [
            (&["--sercet=whsec_1"][..], "unknown argument --sercet"),
            (&["--secret", "a", "whsec_1"], "unknown subcommand (see --help)"),
            (&["show", "whsec_1"], "unexpected argument (see --help)"),
            (
                &["--secret", "whsec_1", "--secret", "whsec_2"],
                "REFUSAL_TEST_SECRET (--secret) is given twice",
            ),
            (
                &["show", "--first", "x"],
                r#"--first: "x" invalid digit found in string"#,
            ),
        ] {
            assert_eq!(said(args), line);
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_named() {
        use std::os::unix::ffi::OsStrExt as _;
        let value = std::ffi::OsStr::from_bytes(b"caf\xe9");
        let args = [
            std::ffi::OsStr::new("program"),
            std::ffi::OsStr::new("--secret"),
            value,
        ];
        let Err(error) = Cli::try_parse_from(args) else {
            panic!("accepted")
        };
        let line = refusal(&Cli::command(), &error).expect("a line");
        assert!(line.contains("not valid UTF-8"), "{line}");
    }

    #[test]
    fn help_and_version_are_no_refusal() {
        for args in [["program", "--help"], ["program", "-h"]] {
            let Err(error) = Cli::try_parse_from(args) else {
                panic!("accepted")
            };
            assert_eq!(refusal(&Cli::command(), &error), None);
        }
    }

    #[test]
    fn global_settings_may_stand_on_either_side_of_a_subcommand() {
        for args in [
            ["program", "--wait", "7s", "show"],
            ["program", "show", "--wait", "7s"],
        ] {
            let cli = Cli::try_parse_from(args).unwrap();
            assert_eq!(cli.wait, Duration::from_secs(7));
            assert!(matches!(cli.command, Some(Sub::Show { first: None })));
            assert!(cli.secret.is_none() && cli.pin.is_none());
            assert_eq!(cli.log.rust_log, "info");
            assert_eq!(cli.addr.port(), 1);
        }
    }
}

//! The subcommand `roles`: shows the rules that add roles to WorkOS's own, or replaces all of them with a file's.
//!
//! A preview queries the database with the new rules in place, inside a transaction that is then rolled back. It uses the
//! view from which readers get their roles, so it cannot differ from what follows.

use std::io::{BufRead, IsTerminal as _, Write};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use sqlx::PgPool;

use crate::config::{Output, Roles};
use crate::roles_file::Rules;
use crate::store::roles::{self as store, Difference};

/// What applying rules does or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Whether the file's rules differ from those in force.
    pub changed: bool,
    /// Whether they were applied.
    pub applied: bool,
    /// The version in force once they are applied.
    pub version: i64,
    /// What is worth a second look.
    pub warnings: Vec<String>,
    /// Who gains and who loses which role.
    pub differences: Vec<Difference>,
}

/// Plans `rules` or, if `for_real`, applies them. The plan of applied rules comes from the same transaction.
pub async fn apply(pool: &PgPool, rules: &Rules, for_real: bool) -> sqlx::Result<Plan> {
    let mut transaction = pool.begin().await?;
    store::lock(&mut transaction).await?;
    let (before, current) = store::current(&mut transaction).await?;
    if current.sorted() == rules.sorted() {
        return Ok(Plan {
            changed: false,
            applied: false,
            version: before,
            warnings: Vec::new(),
            differences: Vec::new(),
        });
    }
    let version = store::insert(&mut transaction, before, rules).await?;
    let unknown = store::unknown_groups(&mut transaction, version).await?;
    let warnings = unknown
        .into_iter()
        .map(|(by, value)| {
            format!("no group with {by} {value:?} is known; the rule has no effect until there is one")
        })
        .collect();
    let differences = store::differences(&mut transaction, before, version).await?;
    if for_real {
        transaction.commit().await?;
    } else {
        transaction.rollback().await?;
    }
    Ok(Plan {
        changed: true,
        applied: for_real,
        version,
        warnings,
        differences,
    })
}

/// Runs the subcommand and prints to `out`. Returns whether it was done.
pub async fn run(
    pool: &PgPool,
    action: Option<&Roles>,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    match action {
        None | Some(Roles::Show) => {
            let mut connection = pool.acquire().await?;
            let (version, rules) = store::current(&mut connection).await?;
            if output.json {
                let mut all = serde_json::to_value(&rules)?;
                all["version"] = version.into();
                writeln!(out, "{all}")?;
            } else {
                writeln!(out, "# version {version}\n{}", rules.to_toml()?)?;
            }
            Ok(true)
        }
        Some(Roles::Apply { file, yes }) => apply_file(pool, file, *yes, output, out).await,
    }
}

async fn apply_file(
    pool: &PgPool,
    file: &Path,
    yes: bool,
    output: Output,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let rules = read(file)?;
    let mut plan = apply(pool, &rules, yes).await?;
    if !yes && plan.changed {
        if output.json || !std::io::stdin().is_terminal() {
            tell(&plan, output, out)?;
            return Ok(false);
        }
        tell(&plan, output, out)?;
        write!(out, "Apply? [y/N] ")?;
        out.flush()?;
        if !agreed(&mut std::io::stdin().lock())? {
            writeln!(out, "nothing was changed")?;
            return Ok(false);
        }
        let planned = std::mem::take(&mut plan.differences);
        plan = apply(pool, &rules, true).await?;
        if plan.differences == planned {
            writeln!(out, "applied as version {}", plan.version)?;
            return Ok(true);
        }
        writeln!(out, "Something changed in the meantime. What was applied:")?;
    }
    tell(&plan, output, out)?;
    Ok(true)
}

/// Reads the rules of `file`, or those on standard input for `-`.
fn read(file: &Path) -> anyhow::Result<Rules> {
    if file != Path::new("-") {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        return Rules::parse(&text).with_context(|| file.display().to_string());
    }
    let text = std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?;
    // A command that was started without its input (`kubectl exec` without `-i`) must not take every role away.
    ensure!(
        !text.trim().is_empty(),
        "nothing came on standard input; for a file without any rule, write a comment into it"
    );
    Rules::parse(&text).context("standard input")
}

fn agreed(input: &mut impl BufRead) -> std::io::Result<bool> {
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn tell(plan: &Plan, output: Output, out: &mut impl Write) -> anyhow::Result<()> {
    if output.json {
        writeln!(out, "{}", serde_json::to_string(plan)?)?;
        return Ok(());
    }
    if !plan.changed {
        writeln!(out, "version {} already has these rules", plan.version)?;
        return Ok(());
    }
    for warning in &plan.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for (sign, gained) in [('+', true), ('-', false)] {
        for difference in plan.differences.iter().filter(|d| d.gained == gained) {
            let organization = difference.organization_id.as_deref().unwrap_or("-");
            writeln!(
                out,
                "{sign} {:<24}  {}  {organization}",
                difference.role, difference.user_id
            )?;
        }
    }
    let gained = plan.differences.iter().filter(|d| d.gained).count();
    writeln!(
        out,
        "{gained} roles gained, {} lost",
        plan.differences.len() - gained
    )?;
    if plan.applied {
        writeln!(out, "applied as version {}", plan.version)?;
    } else {
        writeln!(out, "not applied: use --yes to apply without being asked")?;
    }
    Ok(())
}

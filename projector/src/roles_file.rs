//! The file of role rules: parsed, checked, and written. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The contents of a file, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// How strong a role is, whatever its source, `WorkOS` included; 0 if not listed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub priorities: BTreeMap<String, i32>,
    /// Groups whose members get a role.
    #[serde(default, rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRule>,
    /// Custom attributes that grant a role.
    #[serde(default, rename = "attribute", skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeRule>,
    /// Roles for users who have no other.
    #[serde(default, rename = "default", skip_serializing_if = "Vec::is_empty")]
    pub defaults: Vec<DefaultRule>,
}

/// Members of a group get a role. The group is named by exactly one of `id`, `name` and `idp_id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// The role.
    pub role: String,
    /// `WorkOS`'s id of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its exact name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its id at the identity provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idp_id: Option<String>,
    /// How strong the role is when granted by this rule; overrides `priorities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Only in this organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Only in this directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// Users with a certain value in a custom attribute get a role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeRule {
    /// The role.
    pub role: String,
    /// Keys into `custom_attributes`, outermost first.
    pub path: Vec<String>,
    /// The value that must be there or, if there is a list, that the list must contain.
    pub value: Scalar,
    /// How strong the role is when granted by this rule; overrides `priorities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Only in this organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Only in this directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// Active users without any other role get this one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefaultRule {
    /// The role.
    pub role: String,
    /// How strong the role is when granted by this rule; overrides `priorities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Only in this organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Only in this directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
}

/// A value that a rule looks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A string.
    Text(String),
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// It is not TOML, or not in this format.
    #[error("{0}")]
    Unreadable(#[from] toml::de::Error),
    /// A rule is invalid.
    #[error("{kind} rule {place} (role {role:?}): {why}")]
    Rule {
        /// group, attribute or default.
        kind: &'static str,
        /// Its position among the rules of its kind, from 1.
        place: usize,
        /// Its role.
        role: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A priority has no valid role.
    #[error("priorities: a role's name is empty or contains a NUL character")]
    Priority,
}

impl Rules {
    /// Parses and checks a file.
    pub fn parse(text: &str) -> Result<Self, Wrong> {
        let rules: Self = toml::from_str(text)?;
        rules.check()?;
        Ok(rules)
    }

    /// The same rules as a file.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// The same rules in a fixed order, for comparison.
    #[must_use]
    pub fn sorted(&self) -> Self {
        let mut sorted = self.clone();
        sorted.groups.sort();
        sorted.attributes.sort();
        sorted.defaults.sort();
        sorted
    }

    fn check(&self) -> Result<(), Wrong> {
        if !self.priorities.keys().all(|role| is_text(role)) {
            return Err(Wrong::Priority);
        }
        let groups = self.groups.iter().map(|rule| (&rule.role, rule.wrong()));
        check_all("group", groups, &self.groups)?;
        let attributes = self.attributes.iter().map(|rule| (&rule.role, rule.wrong()));
        check_all("attribute", attributes, &self.attributes)?;
        let defaults = self.defaults.iter().map(|rule| (&rule.role, rule.wrong()));
        check_all("default", defaults, &self.defaults)?;
        let scope = |rule: &DefaultRule| (rule.organization.clone(), rule.directory.clone());
        for (index, rule) in self.defaults.iter().enumerate() {
            if self.defaults[..index]
                .iter()
                .any(|other| scope(other) == scope(rule))
            {
                return Err(Wrong::Rule {
                    kind: "default",
                    place: index + 1,
                    role: rule.role.clone(),
                    why: "there is another default for the same organization or directory, or for all",
                });
            }
        }
        Ok(())
    }
}

fn check_all<'r, R: PartialEq>(
    kind: &'static str,
    rules: impl Iterator<Item = (&'r String, Option<&'static str>)>,
    all: &[R],
) -> Result<(), Wrong> {
    for (index, (role, mut why)) in rules.enumerate() {
        if !is_text(role) {
            why = Some("the role's name is empty or contains a NUL character");
        }
        if all[..index].contains(&all[index]) {
            why = Some("the same rule occurs twice");
        }
        if let Some(why) = why {
            return Err(Wrong::Rule {
                kind,
                place: index + 1,
                role: role.clone(),
                why,
            });
        }
    }
    Ok(())
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn wrong_scope(organization: Option<&String>, directory: Option<&String>) -> Option<&'static str> {
    match (organization, directory) {
        (Some(_), Some(_)) => Some("a rule is for an organization or for a directory, not for both"),
        (Some(id), None) | (None, Some(id)) if !schema::ids::is_id(id) => {
            Some("not an id of an organization or directory")
        }
        _ => None,
    }
}

impl GroupRule {
    fn wrong(&self) -> Option<&'static str> {
        let names = [&self.id, &self.name, &self.idp_id];
        if names.iter().filter(|name| name.is_some()).count() != 1 {
            return Some("name the group by one of id, name and idp_id");
        }
        if !names.into_iter().flatten().all(|name| is_text(name)) {
            return Some("the group's name or id is empty or contains a NUL character");
        }
        wrong_scope(self.organization.as_ref(), self.directory.as_ref())
    }
}

impl AttributeRule {
    fn wrong(&self) -> Option<&'static str> {
        if self.path.is_empty() {
            return Some("the path has no keys");
        }
        let mut texts: Vec<&String> = self.path.iter().collect();
        if let Scalar::Text(value) = &self.value {
            texts.push(value);
        }
        if texts.iter().any(|text| text.contains('\0')) {
            return Some("the path or the value contains a NUL character");
        }
        wrong_scope(self.organization.as_ref(), self.directory.as_ref())
    }
}

impl DefaultRule {
    fn wrong(&self) -> Option<&'static str> {
        wrong_scope(self.organization.as_ref(), self.directory.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        [priorities]
        admin = 100
        member = 10

        [[group]]
        role = "admin"
        name = "Platform"
        organization = "org_1"

        [[attribute]]
        role = "finance"
        path = ["department"]
        value = "Finance"
        priority = 20

        [[default]]
        role = "member"
    "#;

    #[test]
    fn a_file_is_read_and_written_alike() {
        let rules = Rules::parse(WHOLE).unwrap();
        assert_eq!(
            (rules.groups.len(), rules.attributes.len(), rules.defaults.len()),
            (1, 1, 1)
        );
        assert_eq!(Rules::parse(&rules.to_toml().unwrap()).unwrap(), rules);
        assert_eq!(Rules::parse("").unwrap(), Rules::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (file, why) in [
            (
                "[[group]]\nrole='a'",
                "group rule 1 (role \"a\"): name the group by one of",
            ),
            (
                "[[group]]\nrole='a'\nid='x'\nname='y'",
                "by one of id, name and idp_id",
            ),
            ("[[group]]\nrole=''\nid='x'", "the role's name is empty"),
            ("[[group]]\nrole='a'\nname=''", "the group's name or id is empty"),
            (
                "[[group]]\nrole='a'\nid='x'\norganization='o'\ndirectory='d'",
                "not for both",
            ),
            ("[[default]]\nrole='a'\norganization='o o'", "not an id"),
            (
                "[[group]]\nrole='a'\nid='x'\n[[group]]\nrole='a'\nid='x'",
                "group rule 2 (role \"a\"): the same rule",
            ),
            (
                "[[default]]\nrole='a'\n[[default]]\nrole='b'",
                "default rule 2 (role \"b\"): there is another default",
            ),
            (
                "[[attribute]]\nrole='a'\npath=[]\nvalue=1",
                "the path has no keys",
            ),
            ("[[attribute]]\nrole='a'\npath=['x']\nvalue=[1]", "value"),
            ("[[group]]\nrole='a'\nid='x'\nprioriti=1", "unknown field"),
            ("[[grop]]\nrole='a'", "unknown field"),
            ("[priorities]\n\"\"=1", "priorities"),
            ("role", "TOML"),
        ] {
            let wrong = Rules::parse(file).expect_err(file).to_string();
            assert!(wrong.contains(why), "{file:?}: {wrong}");
        }
    }
}

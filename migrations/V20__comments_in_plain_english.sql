-- The comments are the manual: `\d+ directory.users` and `\df+ directory.*` show them. This replaces those that were hard to
-- read, and those that were out of date or incomplete. It changes nothing else, and blocks neither readers nor writers.

comment on schema directory is
    'Who works where, and in which groups: the customers'' directories as WorkOS reports them. Read-only. The views show what is live; directory.changes shows what changed.';

comment on view directory.directories is
    'The customers'' directories that are, or were once, connected and have not been deleted. One row per directory.';
comment on column directory.directories.organization_id is
    'The WorkOS organization the directory is linked to; null until linked.';
comment on column directory.directories.state is
    'active, inactive, validating, invalid_credentials, deleting, or any state that WorkOS adds. linked is shown as active, unlinked as inactive.';
comment on column directory.directories.created_at is 'When the directory was created, according to WorkOS.';
comment on column directory.directories.updated_at is 'When the directory last changed, according to WorkOS.';

comment on view directory.users is
    'People in the directories, whatever their state: filter by active. One row per directory user; a person who returns has a new id.';
comment on column directory.users.organization_id is
    'The directory''s organization or, while that is unknown, the user''s own.';
comment on column directory.users.idp_id is
    'The identity provider''s id. Not unique: a person who returns has it again.';
comment on column directory.users.email is
    'Email address, from wherever WorkOS sent it (email, custom attributes, or the primary entry in emails, else the first). Not unique. Indexed as lower(email), except for dsync_tenant: use directory.login there.';
comment on column directory.users.username is 'User name, from WorkOS''s username field or the custom attributes.';
comment on column directory.users.job_title is 'Job title, from WorkOS''s job_title field or the custom attributes.';
comment on column directory.users.state is
    'active, suspended, inactive, or any state that WorkOS adds; null if WorkOS sent none.';
comment on column directory.users.roles is
    'WorkOS''s own roles (slugs); if WorkOS sent only role, that one. Never null.';
comment on column directory.users.created_at is 'When the user was created, according to WorkOS.';
comment on column directory.users.updated_at is
    'When the user last changed, according to WorkOS. Roles and memberships can change without it.';

comment on view directory.groups is 'Groups in the directories. One row per group.';
comment on column directory.groups.organization_id is
    'The directory''s organization or, while that is unknown, the group''s own.';
comment on column directory.groups.created_at is 'When the group was created, according to WorkOS.';
comment on column directory.groups.updated_at is
    'When the group last changed, according to WorkOS. Its members can change without it.';

comment on view directory.memberships is
    'Who is in which group. One row per user and group, both live and in the same directory.';
comment on column directory.memberships.organization_id is
    'The directory''s organization or, while that is unknown, the one named in the membership''s event.';
comment on column directory.memberships.seen_at is 'When WorkOS last reported this membership.';

comment on view directory.sync_status is 'How up to date each directory is. One row per directory.';
comment on column directory.sync_status.organization_id is
    'The organization the directory is linked to; null until linked.';
comment on column directory.sync_status.last_event_at is
    'Time of the newest event or sweep finding applied for this directory, by WorkOS''s clock.';
comment on column directory.sync_status.last_applied_at is
    'When an event or sweep finding was last applied for this directory.';
comment on column directory.sync_status.last_swept_at is
    'When the last sweep that compared the whole directory with WorkOS began; null before the first.';
comment on column directory.sync_status.last_drift is
    'How many differences that sweep found. They were repaired, except for deletions that are held back.';

comment on view directory.changes is
    'Every change in what the views show. Poll with change_id > the last one handled, order by change_id; LISTEN directory_changes wakes you.';
comment on column directory.changes.change_id is
    'Ascends in commit order: once one is visible, no smaller one will appear. There may be gaps.';
comment on column directory.changes.recorded_at is
    'When the views began to show the change. All changes of a transaction share it, and so does everything that goes with a deleted directory or group, although those changes may be written later: order by change_id.';
comment on column directory.changes.occurred_at is
    'When it happened: the event''s created_at, the sweep''s time, or that of the erasure.';
comment on column directory.changes.organization_id is
    'The organization that sees this change. An object that moves between organizations is deleted in one and created in the other.';
comment on column directory.changes.directory_id is 'The object''s directory.';
comment on column directory.changes.entity_id is 'The object''s id; for a membership, <group_id>/<user_id>.';
comment on column directory.changes.operation is
    'created: shown from now on. updated: shown with different values. deleted: no longer shown.';
comment on column directory.changes.changed is
    'For updated, the columns that changed; otherwise empty. A new seen_at of a membership is not a change.';
comment on column directory.changes.before is
    'The view''s row before the change, as JSON; null if it was not shown. Once the object is forgotten, only ids, times and active remain.';
comment on column directory.changes.after is
    'The view''s row after the change, as JSON; null if it is no longer shown. Once the object is forgotten, only ids, times and active remain.';
comment on column directory.changes.event_id is
    'The event that caused the change. What comes or goes with another object has that object''s event. Null if a person was erased.';
comment on column directory.changes.source is
    'How the event arrived: webhook, events_api or sweep; erase if a person was erased here.';

comment on function directory.users_at(timestamptz) is
    'The rows that directory.users showed at a moment, by the time changes were recorded here. Raises an error if history does not reach back that far.';
comment on function directory.groups_at(timestamptz) is
    'The rows that directory.groups showed at a moment, by the time changes were recorded here. Raises an error if history does not reach back that far.';
comment on function directory.memberships_at(timestamptz) is
    'The rows that directory.memberships showed at a moment, by the time changes were recorded here. seen_at may be later than the moment: it is the last before the next change. Raises an error if history does not reach back that far.';

comment on view directory.user_roles is
    'The roles of active users: WorkOS''s own and those that the role rules add. One row per user and role.';
comment on column directory.user_roles.source is
    'workos, group (a rule for one of the user''s groups), attribute (a rule for a custom attribute) or default. If several give the role, the first of these.';
comment on column directory.user_roles.group_id is 'The group that gives the role, if source is group.';
comment on column directory.user_roles.priority is 'How strong the role is: higher is stronger.';
comment on view directory.user_primary_role is
    'The strongest role of each active user who has any: highest priority first, then by source in the order listed at user_roles.source, then by name.';

comment on function directory.login(text, text) is
    'For a person who just signed in to an organization: whether they are provisioned and active, who they are, their roles (strongest first) and groups. Finds them by email address or, if nobody in the organization has that address, by the identity provider''s id. Always returns one row. Let the person in only if active.';
comment on function directory.explain(text) is
    'Why a user has each of their roles: the rule, since when, and the event that caused it (null if a rule did). Nulls where history does not reach back far enough.';

comment on table dsync.progress is
    'How far each lane has read the log. The transaction that applies a batch also moves the position, by compare-and-set. The lease only saves other projectors the work.';
comment on column dsync.progress.lane is
    'all: every record. removals: only records whose subject''s last word takes access away.';
comment on column dsync.progress.stream_created is
    'When the broker created the stream. A stream that was recreated is a different log.';
comment on column dsync.progress.seq is 'The last sequence that was applied; 0 before the first.';
comment on column dsync.progress.seq_appended_at is
    'When the broker stored the message at seq. A log restored from an older copy has another message at that sequence, or none.';
comment on column dsync.progress.holder is 'The projector that currently advances this lane.';
comment on column dsync.progress.held_until is 'When the holder''s lease expires unless renewed.';

comment on table dsync.rewinds is
    'One row each time the log was found to have lost something: it was recreated, restored from an older copy or cut short; it dropped records before they were applied; or it lacks entries between old_seq and new_seq. If it is not the log that was applied, the lanes start over. The catch-up always does, and directories not swept since are due for a sweep.';

comment on table dsync.dead_letters is
    'Records that could not be applied, including those that ingest could not address. A dropped record keeps its row but not its body, so that reading the log again does not bring it back.';
comment on column dsync.dead_letters.reason is 'What is wrong with the record. Contains nothing of its content.';
comment on column dsync.dead_letters.body is 'The record''s body as received; null once dropped. Personal data.';

comment on table dsync.directories is 'Directories, including those that are gone. Readers use directory.directories.';
comment on table dsync.users is 'Users, including those who are gone. Readers use directory.users.';
comment on table dsync.groups is 'Groups, including those that are gone. Readers use directory.groups.';
comment on table dsync.memberships is 'Memberships, including those that are gone. Readers use directory.memberships.';
comment on column dsync.users.email_key is 'email in lower case, so that an index finds it under row-level security.';
comment on column dsync.directories.in_doubt is
    'Gone, although an event has reported it since: the reconciler reads it (dsync.checks).';
comment on column dsync.users.in_doubt is
    'Gone, although an event has reported it since: the reconciler reads it (dsync.checks).';
comment on column dsync.groups.in_doubt is
    'Gone, although an event has reported it since: the reconciler reads it (dsync.checks).';
comment on column dsync.directories.to_scrub is 'Gone but still has attributes, which upkeep will scrub.';
comment on column dsync.users.to_scrub is 'Gone but still has attributes, which upkeep will scrub.';
comment on column dsync.groups.to_scrub is 'Gone but still has attributes, which upkeep will scrub.';
comment on column dsync.users.came_back is
    'Was gone and has been seen again. The reconciler reads its memberships if some were last seen before it was gone (dsync.checks).';
comment on column dsync.groups.came_back is
    'Was gone and has been seen again. The reconciler reads its memberships if some were last seen before it was gone (dsync.checks).';
comment on table dsync.directory_activity is
    'When a record about each directory was last applied. Not part of the projection: it depends on when records are applied, not only on which.';

comment on table dsync.sweeps is
    'One row per directory to be swept: when it was last swept, and which reconciler is working on it.';
comment on column dsync.sweeps.added_at is 'When the reconciler first knew of the directory.';
comment on column dsync.sweeps.started_at is 'When the last sweep of the directory began, complete or not.';
comment on column dsync.sweeps.swept_at is 'When the last sweep that read the whole directory began.';
comment on column dsync.sweeps.drift is 'How many differences that sweep found, including deletions held back.';
comment on column dsync.sweeps.again_at is 'When the directory is due again, ahead of its regular turn.';
comment on column dsync.sweeps.failures is 'Consecutive sweeps that failed to read the whole directory.';
comment on column dsync.sweeps.retry_at is 'After a failure: no sweep before this time.';
comment on column dsync.sweeps.holder is
    'The reconciler that is working on the directory. Only the holder sends requests for it.';
comment on column dsync.sweeps.held_until is 'When the holder''s lease expires unless renewed.';
comment on column dsync.sweeps.relisted_at is 'When the last such sweep that read the whole directory began.';

comment on table dsync.duties is 'What one reconciler does for all: the catch-up, and reading the list of directories.';
comment on column dsync.duties.position is
    'catch_up: every event before this time minus EVENTS_HOLDBACK has been read from the Events API and acknowledged by the log.';
comment on column dsync.duties.rewind_id is
    'catch_up: the newest row of dsync.rewinds after which it has started over.';
comment on column dsync.duties.done_at is
    'catch_up: when the position was last saved. directories: when the last completed reading began.';
comment on column dsync.duties.holder is 'The reconciler that currently does this.';
comment on column dsync.duties.held_until is 'When the holder''s lease expires unless renewed.';

comment on table dsync.held_deletions is
    'Deletions that the reconciler holds back because it found too many at once (SWEEP_MAX_DELETIONS). They wait for `dsync-reconciler approve`, or until a later sweep finds the objects again.';
comment on table dsync.rereads is
    'What to read again at due_at: objects that differed, but had changed too recently to judge (within the clock margin).';
comment on view dsync.checks is
    'What the reconciler reads at once, and again after the clock margin: objects that are gone although an event has reported them since, and the memberships of objects that came back.';
comment on column dsync.checks.target is
    'What to read: directory, user, group, memberships_of_user or memberships_of_group.';
comment on column dsync.checks.id is 'The id of the object or, for memberships, of the user or group.';
comment on column dsync.checks.after is 'Only a reading as of a later time can show that it exists.';
comment on column dsync.checks.settled_at is 'A reading as of this time or later settles it either way.';

comment on table dsync.changes is
    'Every change in what the views show. One partition per month, created ahead and dropped by the projector''s upkeep. Readers use directory.changes.';
comment on table dsync.feed is
    'One row: when the newest change was recorded. A transaction that records changes holds the row''s lock until it ends.';
comment on table dsync.history is
    'One row: the time from which history is complete. It advances when old partitions are dropped.';
comment on function dsync.prepare_history(timestamptz) is 'Creates the partitions of dsync.changes up to a moment.';
comment on function dsync.drop_history(timestamptz) is
    'Drops the partitions of dsync.changes that end at or before a moment.';

comment on table dsync.role_versions is
    'Versions of the role rules, created by `dsync-projector roles apply`. The highest is in force.';
comment on table dsync.role_priorities is
    'How strong each role is, whatever its source, unless the rule that gives it says otherwise. 0 if not listed.';
comment on table dsync.role_rules is
    'The rules of each version. A rule applies to one organization, one directory, or everybody.';
comment on column dsync.role_rules.rule is
    'Its number: group rules first, then attribute rules, then defaults, each in file order.';
comment on column dsync.role_rules.group_by is 'What group_value is of the group: its id, name or idp_id.';
comment on column dsync.role_rules.value is
    'The value required at path. If path leads to a list, the list must contain it.';
comment on column dsync.role_rules.since is 'Since when every version has contained this rule, whatever its priority.';
comment on view dsync.granted_roles is
    'Who has which role under each version of the rules. Readers use directory.user_roles.';

comment on table dsync.every_tenant is 'One row, visible only to those who may see all tenants.';
comment on function dsync.grant_readers() is
    'Grants dsync_reader and dsync_tenant their rights, and creates the two roles if it may. Returns the statements that an administrator must run first.';

comment on table dsync.erased is
    'Directory users who were erased. Later records about them are not applied, and are purged from the log once read.';
comment on column dsync.erased.marks is
    'While an erasure is unfinished: email addresses, user names and identity provider''s ids that identify the person in records without their user id. Personal data. Empty once finished.';
comment on table dsync.purges is
    'Log messages about erased people that are still to be purged. A row is added when the message is read and removed when it is purged.';
comment on table dsync.overwritten is
    'Log messages that are absent for a known reason: an erasure removed them, or they were missing before anything was projected. A log that lacks only these has lost nothing.';

comment on table dsync.rebuilds is
    'One row per rebuild of the projection from the log: where the lanes stood, and how many rows differed from the log and were replaced.';
comment on column dsync.rebuilds.seq is
    'The position of the lane all when the rows were replaced. Undoing the rebuild returns the lane to it.';
comment on column dsync.rebuilds.removals_seq is 'The same for the lane removals.';
comment on table dsync.replaced is
    'Rows as they were before the newest rebuild replaced them. `rebuild --undo` restores them. Kept for a week. Personal data.';
comment on column dsync.replaced.id is 'The object''s id; for a membership, the group''s.';
comment on column dsync.replaced.user_id is 'For a user or a membership, the user''s id.';
comment on column dsync.replaced.image is
    'The row as it was; null if there was none, or if its user has been erased since.';

comment on table dsync.history_backlog is
    'Directories that ended and whose contents are still to be recorded in dsync.changes as deleted: users, then groups, then memberships, each in the order of their keys.';
comment on column dsync.history_backlog.seen_after is
    'What the directory contained was shown only if it was seen after this time.';
comment on column dsync.history_backlog.recorded_at is
    'When the directory ended, and the recorded_at of the pending changes.';
comment on column dsync.history_backlog.event_id is 'The event that ended the directory.';
comment on column dsync.history_backlog.entity is
    'What is being written: user, then group, then membership. Those before it are done.';
comment on column dsync.history_backlog.after_id is
    'The id of the last row dealt with; for a membership, its group''s.';
comment on column dsync.history_backlog.after_user_id is 'For memberships, the user id of the last row dealt with.';
comment on table dsync.history_told_early is
    'Rows of directories in dsync.history_backlog whose history was written early, before they changed: users with all their memberships, and groups without theirs.';
comment on column dsync.history_told_early.was_shown is 'For a group: whether it was shown when its directory ended.';
comment on column dsync.history_told_early.gone_at is 'For a group: when it was last gone before its directory ended.';

comment on table dsync.group_history_backlog is
    'Groups that ended and whose memberships are still to be recorded in dsync.changes as deleted, in the order of their users.';
comment on column dsync.group_history_backlog.seen_after is
    'A membership of the group was shown only if it was seen after this time.';
comment on column dsync.group_history_backlog.recorded_at is
    'When the group ended, and the recorded_at of the pending changes.';
comment on column dsync.group_history_backlog.event_id is 'The event that ended the group.';
comment on column dsync.group_history_backlog.after_user_id is 'The user id of the last membership dealt with.';
comment on column dsync.group_history_backlog.directory_seen_after is
    'What the directory contained was shown only if it was seen after this time.';
comment on table dsync.group_history_told_early is
    'Memberships of groups in dsync.group_history_backlog that need no more history.';

comment on function dsync.entering_deferring_groups(text[], text[], text[]) is
    'Begins a transaction that writes the projection: locks the directories, and returns which of the people are erased and whether the history of any ended directory or group is still to be written.';
comment on function dsync.entering(text[], text[]) is
    'As dsync.entering_deferring_groups, for programs older than V19: the history of ended groups is not deferred and, if it is pending for these directories or those of the people, is written first.';
comment on function dsync.enter(text[], text[]) is
    'As dsync.entering, for programs older than V15: the same goes for the history of ended directories. Returns only which of the people are erased.';
comment on function dsync.write_history_early(text[], text[], text[], text[], text[], text[]) is
    'Writes pending history of rows before they change: of users (with their memberships) and groups of directories in dsync.history_backlog, and of memberships of groups in dsync.group_history_backlog.';
comment on function dsync.write_history_early(text[], text[], text[], text[]) is
    'As dsync.write_history_early with six arguments, for programs older than V19, which name no memberships.';
comment on function dsync.write_history_of_directories_early(text[], text[], text[], text[]) is
    'Writes pending history of rows before they change: of users (with their memberships) and groups of directories in dsync.history_backlog.';

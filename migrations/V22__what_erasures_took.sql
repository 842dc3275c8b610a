-- A membership's event also describes the group. When an erasure takes the event from the log, the group's row may be all that
-- still knows what it said. dsync.overwritten now names the event, so that `verify` and `rebuild` can tell such a row from one
-- that was changed by hand.
alter table dsync.overwritten
    add column group_id text collate "C",
    add column event_id text collate "C",
    add column source text collate "C";
comment on column dsync.overwritten.group_id is
    'The group that the message described, if it was a membership''s. Verifying and rebuilding take from the group''s row what only this message said.';
comment on column dsync.overwritten.event_id is 'The event of that message, as in the columns version_event and seen_event.';
comment on column dsync.overwritten.source is 'Its source, as in the columns version_source and seen_source.';

comment on view directory.changes is
    'A row for every change in directories, users, groups and memberships, except for what a rebuild replaced. Role rules leave no rows. Poll with change_id > the last one handled, order by change_id; LISTEN directory_changes wakes you.';

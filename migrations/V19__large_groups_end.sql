-- The end of a large group is a matter of one row, as that of a directory is (V15): its memberships are shown no more from
-- the commit of that row on, and the history of them is written afterwards, in parts. Before, all of that was one
-- transaction, for which everybody else's removals waited: two seconds for a group of 100,000.
--
-- While a group is in dsync.group_history_backlog, its memberships are in the tables as they were last shown, but for those
-- in dsync.group_history_told_early. Whoever changes a membership, or its user, has that seen to first
-- (dsync.write_history_early). Of the group and its directory the backlog knows what they were: nothing that becomes of them
-- changes what is to be told, unless the group comes back, or its directory goes to another organization: then all of it is
-- told first.

create table dsync.group_history_backlog (
    group_id text collate "C" primary key,
    directory_id text collate "C" not null,
    seen_after timestamptz not null,
    recorded_at timestamptz not null,
    occurred_at timestamptz not null,
    event_id text collate "C" not null,
    source text collate "C" not null,
    after_user_id text collate "C" not null default '',
    directory_seen_after timestamptz not null
);
create index group_history_backlog_directory on dsync.group_history_backlog (directory_id);
comment on table dsync.group_history_backlog is
    'Groups that ended, and of which it is still to be written into dsync.changes which memberships they took along, in the order of their users.';
comment on column dsync.group_history_backlog.seen_after is 'What the group held was shown if it was seen after this.';
comment on column dsync.group_history_backlog.recorded_at is 'When that ended.';
comment on column dsync.group_history_backlog.event_id is 'The event by which it ended.';
comment on column dsync.group_history_backlog.after_user_id is 'The user of the last membership that is written.';
comment on column dsync.group_history_backlog.directory_seen_after is
    'What the directory held was shown if it was seen after this.';

create table dsync.group_history_told_early (
    group_id text collate "C" not null,
    user_id text collate "C" not null,
    directory_id text collate "C" not null,
    primary key (group_id, user_id)
);
comment on table dsync.group_history_told_early is
    'Memberships of groups in dsync.group_history_backlog of which nothing is left to be written.';

-- Whether a group has more than some memberships, live or not.
create function dsync.has_more_members_than(group_id text, bound bigint) returns boolean
language plpgsql stable set search_path = pg_catalog set enable_seqscan = off as $$
begin
    return bound < (
        select count(*) from (
            select from dsync.memberships as m where m.group_id = has_more_members_than.group_id limit bound + 1
        ) as m
    );
end
$$;

-- What the group of a backlog `b` took along, of its memberships with `users`.
create function dsync.write_group_history(b dsync.group_history_backlog, users text[]) returns void
language plpgsql volatile
set search_path = pg_catalog set timezone = 'UTC' set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    written bigint;
begin
    -- Not for the moment it answers: for the lock under which changes are numbered.
    perform dsync.recording();
    insert into dsync.changes (
        change_id, recorded_at, occurred_at, organization_id, directory_id, entity, entity_id, operation, before,
        event_id, source
    )
    select
        nextval('dsync.change_ids'), b.recorded_at, nullif(b.occurred_at, '-infinity'), x.organization_id,
        b.directory_id, 'membership', x.group_id || '/' || x.user_id, 'deleted', to_jsonb(x), nullif(b.event_id, ''),
        dsync.source_name(b.source)
    from (
        select m.group_id, m.user_id, m.directory_id, m.organization_id, m.seen_at
        from unnest(users) as t (id)
        cross join lateral (
            select m.* from dsync.memberships as m
            where m.group_id = b.group_id and m.user_id = t.id and m.directory_id = b.directory_id
                and m.seen_at > greatest(m.gone_at, b.seen_after, b.directory_seen_after)
            offset 0
        ) as m
        cross join lateral (
            select from dsync.users as u
            where u.id = m.user_id and u.directory_id = b.directory_id
                and u.seen_at > greatest(u.gone_at, b.directory_seen_after) and m.seen_at > u.gone_at
            offset 0
        ) as u
        where not exists (
            select from dsync.group_history_told_early as e
            where e.group_id = b.group_id and e.user_id = m.user_id offset 0
        )
        order by m.user_id
    ) as x;
    get diagnostics written = row_count;
    if written > 0 then
        perform set_config('dsync.last_change', currval('dsync.change_ids')::text, true);
    end if;
end
$$;

-- The next users of a backlog `b`, in their order.
create function dsync.next_members(b dsync.group_history_backlog, bound bigint) returns text[]
language sql stable set search_path = pg_catalog set enable_seqscan = off as $$
    select array(
        select m.user_id from dsync.memberships as m
        where m.group_id = b.group_id and m.user_id > b.after_user_id
        order by m.user_id limit bound
    )
$$;

-- Writes the next `bound` rows of what a group's end took along, at most; false if nothing is to be written, or if another
-- writes a part now.
create function dsync.write_group_history_part(bound bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog as $$
declare
    b dsync.group_history_backlog;
    users text[];
begin
    if not pg_try_advisory_xact_lock(hashtext('dsync history backlog'), 0) then
        return false;
    end if;
    select h.* into b from dsync.group_history_backlog as h order by h.recorded_at, h.group_id limit 1;
    if not found then
        return false;
    end if;
    perform dsync.lock_directories(array[b.directory_id]);
    -- It may have been told meanwhile, and be that of another end.
    select h.* into b from dsync.group_history_backlog as h
    where h.group_id = b.group_id and h.recorded_at = b.recorded_at for update;
    if not found then
        return true;
    end if;
    users := dsync.next_members(b, bound);
    perform dsync.write_group_history(b, users);
    if cardinality(users) < bound then
        delete from dsync.group_history_told_early as e where e.group_id = b.group_id;
        delete from dsync.group_history_backlog as h where h.group_id = b.group_id;
    else
        update dsync.group_history_backlog as h set after_user_id = users[bound] where h.group_id = b.group_id;
    end if;
    return true;
end
$$;

-- Writes all that is left to be written of a group's end, if something is.
create function dsync.write_group_backlog(group_id text) returns void
language plpgsql volatile set search_path = pg_catalog as $$
declare
    b dsync.group_history_backlog;
    users text[];
begin
    select h.* into b from dsync.group_history_backlog as h
    where h.group_id = write_group_backlog.group_id for update;
    if not found then
        return;
    end if;
    loop
        users := dsync.next_members(b, 10000);
        exit when users = '{}';
        perform dsync.write_group_history(b, users);
        b.after_user_id := users[cardinality(users)];
    end loop;
    delete from dsync.group_history_told_early as e where e.group_id = b.group_id;
    delete from dsync.group_history_backlog as h where h.group_id = b.group_id;
end
$$;

alter function dsync.write_history_early(text[], text[], text[], text[]) rename to write_history_of_directories_early;

-- As the one of V15, and of the memberships of these people, and of those that are about to be written (`of_groups` and
-- `of_users`, side by side), in groups that ended.
create function dsync.write_history_early(
    people text[], people_in text[], groups text[], groups_in text[], of_groups text[], of_users text[]
) returns void
language plpgsql volatile set search_path = pg_catalog set enable_seqscan = off as $$
declare
    b dsync.group_history_backlog;
    users text[];
begin
    perform dsync.write_history_of_directories_early(people, people_in, groups, groups_in);
    if not exists (select from dsync.group_history_backlog) then
        return;
    end if;
    for b in
        select h.* from dsync.group_history_backlog as h
        where h.group_id in (
            select x.group_id from (
                select m.group_id, m.user_id from dsync.memberships as m where m.user_id = any(people)
                union all
                select x.group_id collate "C", x.user_id collate "C"
                from unnest(of_groups, of_users) as x (group_id, user_id)
            ) as x
            where not exists (
                select from dsync.group_history_told_early as e
                where e.group_id = x.group_id and e.user_id = x.user_id offset 0
            )
        )
        order by h.group_id for update
    loop
        users := array(
            select m.user_id from dsync.memberships as m
            where m.user_id = any(people) and m.group_id = b.group_id
            union
            select x.user_id collate "C" from unnest(of_groups, of_users) as x (group_id, user_id)
            where x.group_id = b.group_id
            except
            select e.user_id from dsync.group_history_told_early as e where e.group_id = b.group_id
            order by 1
        );
        if users[cardinality(users)] > b.after_user_id collate "C" then
            perform dsync.write_group_history(
                b, array(select x.id from unnest(users) as x (id) where x.id > b.after_user_id collate "C")
            );
        end if;
        insert into dsync.group_history_told_early (group_id, user_id, directory_id)
        select b.group_id, x.id, b.directory_id from unnest(users) as x (id);
    end loop;
end
$$;
comment on function dsync.write_history_early(text[], text[], text[], text[], text[], text[]) is
    'Writes what is to be written of users and groups of directories in dsync.history_backlog, and of memberships of groups in dsync.group_history_backlog, before they change.';

-- For programs from before.
create function dsync.write_history_early(people text[], people_in text[], groups text[], groups_in text[]) returns void
language sql volatile set search_path = pg_catalog as $$
    select dsync.write_history_early(people, people_in, groups, groups_in, null, null)
$$;

-- Begins a transaction that writes into the projection: `groups` are those that it, or a membership of which, it means. Who
-- calls this one calls dsync.write_history_early before it changes what may be in a backlog, and once more between groups and
-- memberships if a group may have ended in between.
create function dsync.entering_deferring_groups(
    directories text[], people text[], groups text[], out erased text[], out has_backlog boolean
) language plpgsql volatile as $$
declare
    elsewhere text[];
begin
    -- Settings of the connection would get lost in a pooler between. What comes back with a directory or a group has its
    -- history at once: that takes longer than other statements may.
    perform
        set_config('search_path', 'dsync, pg_temp', true), set_config('statement_timeout', '15min', true),
        set_config('dsync.may_defer', 'on', true), set_config('dsync.may_defer_groups', 'on', true);
    if current_setting('dsync.deferred_above', true) !~ '^[0-9]{1,18}$' then
        perform set_config('dsync.deferred_above', '', true);
    end if;
    -- Who is in another directory than an event of theirs says, whatever WorkOS means by it, changes in both. Who that is one
    -- knows for certain only behind the locks: so they are given back, and taken again with those of the others, in their order.
    -- Looked for only where it can matter: it would cost each batch a look at everybody it means.
    loop
        begin
            perform dsync.lock_directories(directories);
            has_backlog := exists (select from dsync.history_backlog) or exists (select from dsync.group_history_backlog);
            exit when not has_backlog;
            elsewhere := array(
                select u.directory_id from dsync.users as u
                where u.id = any(people) and u.directory_id <> all (directories)
                union
                select g.directory_id from dsync.groups as g
                where g.id = any(groups) and g.directory_id <> all (directories)
            );
            exit when elsewhere = '{}';
            raise sqlstate 'DSYNC';
        exception
            when sqlstate 'DSYNC' then directories := directories || elsewhere;
        end;
    end loop;
    erased := array(select e.user_id from dsync.erased as e where e.user_id = any(people));
    -- Before the lock that history takes with the first change: whoever writes the backlog takes them in that order.
    if has_backlog then
        perform from dsync.history_backlog as b where b.directory_id = any(directories) order by b.directory_id for update;
        perform from dsync.group_history_backlog as b
        where b.directory_id = any(directories) or b.group_id = any(groups) order by b.group_id for update;
    end if;
end
$$;
comment on function dsync.entering_deferring_groups(text[], text[], text[]) is
    'Begins a transaction that writes into the projection: takes the locks of directories and answers which people are erased, and whether history of some end is still to be written.';

-- For programs from before: none of groups is made for them, and what is in it of what they mean is written.
create function dsync.write_backlogs_of_groups(directories text[], people text[]) returns void
language plpgsql volatile set search_path = pg_catalog as $$
begin
    -- Before the lock that history takes with the first change, as above.
    perform from dsync.group_history_backlog as h
    where h.directory_id = any(directories)
        or h.directory_id in (select u.directory_id from dsync.users as u where u.id = any(people))
    order by h.group_id for update;
    perform dsync.write_group_backlog(b.group_id)
    from (
        select h.group_id from dsync.group_history_backlog as h
        where h.directory_id = any(directories)
            or h.directory_id in (select u.directory_id from dsync.users as u where u.id = any(people))
        order by h.group_id
    ) as b;
end
$$;

create or replace function dsync.entering(directories text[], people text[], out erased text[], out has_backlog boolean)
language plpgsql volatile as $$
begin
    select e.erased, e.has_backlog into entering.erased, entering.has_backlog
    from dsync.entering_deferring_groups(entering.directories, entering.people, '{}') as e;
    perform set_config('dsync.may_defer_groups', 'off', true);
    perform dsync.write_backlogs_of_groups(entering.directories, entering.people);
end
$$;

create or replace function dsync.enter(directories text[], people text[]) returns setof text
language plpgsql volatile as $$
begin
    perform set_config('search_path', 'dsync, pg_temp', true);
    perform dsync.lock_directories(enter.directories);
    perform dsync.write_backlog(b.directory_id) from dsync.history_backlog as b
    where b.directory_id = any(enter.directories)
        or b.directory_id in (select u.directory_id from dsync.users as u where u.id = any(enter.people));
    perform dsync.write_backlogs_of_groups(enter.directories, enter.people);
    return query select e.user_id from dsync.erased as e where e.user_id = any(enter.people);
end
$$;

-- The functions that write history, as V12 and V15 made them, but for these places.
do $migration$
declare
    amendment record;
    definition text;
    amended text;
begin
    for amendment in
        select * from (values
            (
                'dsync.groups_updated()', $$if is_moved then$$,
                $$if is_moved then
        -- What went along the last time was shown last as it is now: it is told before anything else becomes of it.
        perform dsync.write_group_backlog(b.group_id)
        from new_rows as n
        join dsync.group_history_backlog as b on b.group_id = n.id
        where n.seen_at > n.gone_at
            -- A rebuild by a program from before may have brought it back.
            or (select o.seen_at > o.gone_at from old_rows as o where o.id = n.id);
        if current_setting('dsync.may_defer_groups', true) = 'on' then
            insert into dsync.group_history_backlog (
                group_id, directory_id, seen_after, recorded_at, occurred_at, event_id, source, directory_seen_after
            )
            select n.id, n.directory_id, o.gone_at, stamp, n.gone_at, n.gone_event, n.gone_source, d.gone_at
            from old_rows as o
            join new_rows as n on n.id = o.id
            -- By its key: without nested loops a join would read all directories. Of one that is unknown, or of no
            -- organization, no tenant would see the backlog.
            cross join lateral (
                select d.gone_at from dsync.directories as d
                where d.id = n.directory_id and d.organization_id is not null
                    and d.seen_at > d.gone_at and o.seen_at > d.gone_at
                offset 0
            ) as d
            where o.directory_id = n.directory_id and o.seen_at > o.gone_at and not n.seen_at > n.gone_at
                and dsync.has_more_members_than(
                    n.id, coalesce(nullif(current_setting('dsync.deferred_above', true), ''), '1000')::bigint
                );
        end if;$$
            ),
            -- Of a group in the backlog nothing is shown, and what was is told elsewhere.
            (
                'dsync.groups_updated()', $$where o.directory_id is distinct from n.directory_id
                or o.gone_at is distinct from n.gone_at
                or (o.seen_at > o.gone_at) is distinct from (n.seen_at > n.gone_at)
                or (o.seen_at > coalesce(d.gone_at, '-infinity'))
                    is distinct from (n.seen_at > coalesce(d.gone_at, '-infinity'))$$,
                $$where (
                o.directory_id is distinct from n.directory_id
                or o.gone_at is distinct from n.gone_at
                or (o.seen_at > o.gone_at) is distinct from (n.seen_at > n.gone_at)
                or (o.seen_at > coalesce(d.gone_at, '-infinity'))
                    is distinct from (n.seen_at > coalesce(d.gone_at, '-infinity'))
            )
            and not exists (
                select from dsync.group_history_backlog as b where b.group_id = coalesce(n.id, o.id)
            )$$
            ),
            (
                'dsync.directories_inserted()', $$perform dsync.write_backlog(moved.id);$$,
                $$perform dsync.write_backlog(moved.id);
            -- It names the organization that it was shown to.
            if not moved.stays then
                perform dsync.write_backlogs_of_groups(array[moved.id], null);
            end if;$$
            ),
            (
                'dsync.directories_updated()', $$perform dsync.write_backlog(moved.id);$$,
                $$perform dsync.write_backlog(moved.id);
            -- It names the organization that it was shown to.
            if not moved.stays then
                perform dsync.write_backlogs_of_groups(array[moved.id], null);
            end if;$$
            ),
            -- Who sees the backlog of directories sees that of groups.
            (
                'dsync.grant_readers()', $$'history_told_early'$$,
                $$'history_told_early', 'group_history_backlog', 'group_history_told_early'$$
            )
        ) as a (function, part, instead)
    loop
        definition := pg_get_functiondef(amendment.function::regprocedure);
        amended := replace(definition, amendment.part, amendment.instead);
        if amended = definition then
            raise exception '% is not as earlier migrations made it', amendment.function;
        end if;
        execute amended;
    end loop;
end
$migration$;

-- As in V15, and what a group took along after that moment was shown then, even if history does not say so yet.
create or replace function directory.memberships_at(moment timestamptz) returns setof directory.memberships
language sql stable
begin atomic
    with since as (
        select distinct on (c.entity_id) c.entity_id, c.before
        from dsync.changes as c
        where c.entity = 'membership' and c.recorded_at > dsync.kept(moment)
        order by c.entity_id, c.change_id
    )
    select m.* from directory.memberships as m
    where not exists (select from since as s where s.entity_id = m.group_id || '/' || m.user_id)
    union all
    select m.* from since as s cross join lateral jsonb_populate_record(null::directory.memberships, s.before) as m
    where s.before is not null
    union all
    select
        m.group_id, m.user_id, m.directory_id, m.organization_id, m.seen_at
    from dsync.history_backlog as b
    join dsync.memberships as m on m.directory_id = b.directory_id
    join dsync.users as u on u.id = m.user_id and u.directory_id = m.directory_id
    left join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
    left join dsync.history_told_early as t
        on t.directory_id = b.directory_id and t.entity = 'group' and t.id = m.group_id
    where b.recorded_at > moment and m.seen_at > greatest(m.gone_at, u.gone_at, b.seen_after)
        and u.seen_at > greatest(u.gone_at, b.seen_after)
        and case
            when t.was_shown is null
                then m.seen_at > g.gone_at and g.seen_at > greatest(g.gone_at, b.seen_after)
            else t.was_shown and m.seen_at > t.gone_at
        end
        and not exists (select from since as s where s.entity_id = m.group_id || '/' || m.user_id)
        and not exists (
            select from dsync.history_told_early as e
            where e.directory_id = b.directory_id and e.entity = 'user' and e.id = m.user_id
        )
    union all
    select
        m.group_id, m.user_id, m.directory_id, m.organization_id, m.seen_at
    from dsync.group_history_backlog as b
    join dsync.memberships as m on m.group_id = b.group_id and m.directory_id = b.directory_id
    join dsync.users as u on u.id = m.user_id and u.directory_id = m.directory_id
    where b.recorded_at > moment
        and m.seen_at > greatest(m.gone_at, u.gone_at, b.seen_after, b.directory_seen_after)
        and u.seen_at > greatest(u.gone_at, b.directory_seen_after)
        and not exists (select from since as s where s.entity_id = m.group_id || '/' || m.user_id)
        and not exists (
            select from dsync.group_history_told_early as e where e.group_id = b.group_id and e.user_id = m.user_id
        );
end;

-- What only the programs do.
revoke execute on function
    dsync.has_more_members_than(text, bigint), dsync.write_group_history(dsync.group_history_backlog, text[]),
    dsync.next_members(dsync.group_history_backlog, bigint), dsync.write_group_history_part(bigint),
    dsync.write_group_backlog(text),
    dsync.write_history_early(text[], text[], text[], text[], text[], text[]),
    dsync.write_history_early(text[], text[], text[], text[]),
    dsync.entering_deferring_groups(text[], text[], text[]), dsync.write_backlogs_of_groups(text[], text[])
from public;

alter table dsync.group_history_backlog enable row level security;
alter table dsync.group_history_told_early enable row level security;
do $$
declare
    missing text[] := dsync.grant_readers();
begin
    if missing <> '{}' then
        raise notice 'readers have no access until an administrator runs: % and then, as the owner: select dsync.grant_readers()',
            array_to_string(missing, ' ');
    end if;
end
$$;

comment on table dsync.rewinds is
    'Each time the log was found shorter than what was applied, and the lanes start over; or without entries from its middle, which `old_seq` and `new_seq` are around. Directories not swept since are due.';
comment on table dsync.overwritten is
    'Messages of the log that erasing people took from it, or that it lacked before anything was projected: a log that lacks these has lost nothing else.';

-- Who signs in with an address is who has that address. Until now an identity provider's id that reads like it counted as
-- much, and the newest of all that matched was taken: where such ids are old addresses, one person was answered for another.
-- Nobody is found by an empty text, which is what some providers send for a missing one.
create or replace function directory.login(organization_id text, email_or_idp_id text) returns table (
    provisioned boolean, active boolean, user_id text, directory_id text, directory_state text, role text, roles text[],
    group_ids text[], group_names text[], matches bigint
)
language sql stable rows 1
begin atomic
    select
        u.id is not null, coalesce(u.active, false), u.id, u.directory_id, u.directory_state, r.role,
        coalesce(r.roles, '{}'), coalesce(g.ids, '{}'), coalesce(g.names, '{}'), coalesce(u.matches, 0)
    from (select) as one
    left join lateral (
        select
            u.id, u.directory_id, coalesce(u.state = 'active', false) as active, d.state as directory_state,
            count(*) over (partition by k.by_address) as matches
        from dsync.users as u
        left join dsync.directories as d on d.id = u.directory_id
        cross join lateral (
            select coalesce(u.email_key = lower(login.email_or_idp_id), false) as by_address
        ) as k
        where login.email_or_idp_id <> ''
            and (u.email_key = lower(login.email_or_idp_id) or u.idp_id = login.email_or_idp_id)
            and u.organization_id = login.organization_id
            and u.seen_at > u.gone_at
            and (d.id is null or (d.seen_at > d.gone_at and u.seen_at > d.gone_at))
        -- Also before who is active: a person who was deactivated is not let in as another.
        order by k.by_address desc, 3 desc, u.created_at desc nulls last, u.id
        limit 1
    ) as u on true
    left join lateral (
        select
            array_agg(r.role order by r.priority desc, r.rank, r.role) as roles,
            (array_agg(r.role order by r.priority desc, r.rank, r.role))[1] as role
        from dsync.granted_roles as r
        where r.user_id = u.id and u.active and r.version = (select max(v.version) from dsync.role_versions as v)
    ) as r on true
    left join lateral (
        select array_agg(g.id order by g.id) as ids, array_agg(g.name order by g.id) as names
        from dsync.memberships as m
        join dsync.groups as g on g.id = m.group_id and g.directory_id = m.directory_id
        join dsync.users as w on w.id = m.user_id and w.directory_id = m.directory_id
        left join dsync.directories as d on d.id = m.directory_id
        where m.user_id = u.id
            and m.seen_at > greatest(m.gone_at, w.gone_at, g.gone_at)
            and w.seen_at > w.gone_at
            and g.seen_at > g.gone_at
            and (d.id is null or (d.seen_at > d.gone_at and least(m.seen_at, w.seen_at, g.seen_at) > d.gone_at))
    ) as g on true;
end;
comment on function directory.login(text, text) is
    'For a person who just signed in to an organization, by their address, or if nobody has it by the identity provider''s id: whether they are provisioned and active, who they are, their roles (strongest first) and groups. Always one row. Let in only who is active.';

-- `moment`, if history reaches back to it. What was at no moment in particular is no question.
create or replace function dsync.kept(moment timestamptz) returns timestamptz
language plpgsql stable set search_path = pg_catalog as $$
declare
    begins_at timestamptz := (select h.begins_at from dsync.history as h);
begin
    if moment is null then
        raise exception 'of which moment? null is none' using errcode = 'null_value_not_allowed';
    end if;
    if moment < begins_at then
        raise exception 'history is kept since %', begins_at using errcode = 'datetime_field_overflow';
    end if;
    return moment;
end
$$;

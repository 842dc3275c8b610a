-- An object that moves to a directory of another organization is deleted for the one and created for the other. Until now both
-- rows of history named the new directory; the deletion now names the old one, in which the tenant saw the object.
--
-- directory.explain says two of its reasons in plainer words.
do $migration$
declare
    amendment record;
    definition text;
    amended text;
begin
    for amendment in
        select * from (values
            ('dsync.users_updated()', 'x.directory_id, x.entity,',
                $$case x.operation when 'deleted' then x.before ->> 'directory_id' else x.directory_id end, x.entity,$$),
            ('dsync.groups_updated()', 'x.directory_id, x.entity,',
                $$case x.operation when 'deleted' then x.before ->> 'directory_id' else x.directory_id end, x.entity,$$),
            ('dsync.memberships_updated()', 'x.directory_id, x.entity,',
                $$case x.operation when 'deleted' then x.before ->> 'directory_id' else x.directory_id end, x.entity,$$),
            ('directory.explain(text)', 'the group was called so', 'the group took that name or idp_id'),
            ('directory.explain(text)', 'the rule was made', 'the rule was added')
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

-- The fence around a process that was shut out: each commit of events asks for its process's row with this, and so
-- holds it until the end of the transaction. Who deletes the row waits for the commits that are under way, and none
-- comes after. Looks at the table only when called, a fresh look each time.
CREATE FUNCTION require_member(member text, member_term bigint) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
BEGIN
  PERFORM 1 FROM cluster_members WHERE id = member AND term = member_term FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'the process % of term % was shut out', member, member_term USING ERRCODE = 'TRFEN';
  END IF;
  RETURN true;
END $$;

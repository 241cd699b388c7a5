-- What a user's words may be mistyped as stands beside the user: as rows of their own, of which there are fifteen for
-- each user, it cost more than all else that is stored of a member of a room.
ALTER TABLE user_directory ADD COLUMN typos text[] COLLATE "C" NOT NULL DEFAULT '{}';
UPDATE user_directory d SET typos = t.variants
FROM (SELECT user_id, array_agg(variant) AS variants FROM user_directory_typos GROUP BY user_id) AS t
WHERE t.user_id = d.user_id;
DROP TABLE user_directory_typos;
-- A search reads what waits to be sorted in, so that is not to be much.
CREATE INDEX user_directory_typos ON user_directory USING gin (typos) WITH (gin_pending_list_limit = 1024);

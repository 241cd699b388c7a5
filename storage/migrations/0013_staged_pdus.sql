-- PDUs that were acknowledged before they had their place: what they wait for comes from other servers.
CREATE TABLE staged_pdus (
  id bigint PRIMARY KEY,
  origin text NOT NULL,
  room_id text NOT NULL,
  json text NOT NULL
);

-- Application services that administrators registered while the server ran; those of files stand in the files alone.
CREATE TABLE appservice_registrations (
  id text PRIMARY KEY,
  -- A registration as JSON, in the form of the files.
  registration text NOT NULL,
  created_ts bigint NOT NULL
);

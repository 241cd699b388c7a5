import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { readConfig } from '../config/load.ts';
import { configSchema } from '../config/schema.ts';
import { showConfig } from '../config/show.ts';

const SAMPLE = readFileSync(new URL('../../config.sample.yaml', import.meta.url), 'utf8');
/** The sample with its commented options switched on. */
const WHOLE = SAMPLE.replaceAll(/^(\s*)# (\s*(?:- )?[a-z0-9_]+:.*)$/gm, '$1$2');

interface Node {
  properties?: Record<string, Node>;
}

function optionPaths(node: Node, path = ''): string[] {
  return Object.entries(node.properties ?? {}).flatMap(([name, child]) =>
    child.properties ? optionPaths(child, `${path}${name}.`) : [`${path}${name}`],
  );
}

function valueAt(config: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce((value, step) => (value as Record<string, unknown> | undefined)?.[step], config);
}

describe('configuration', () => {
  it('of the sample is the default', () => {
    assert.deepEqual(readConfig(SAMPLE, '/etc/trellis'), readConfig('', '/etc/trellis'));
  });

  it('of the sample explains every option', () => {
    const whole = readConfig(WHOLE, '/etc/trellis');
    for (const path of optionPaths(configSchema as unknown as Node))
      assert.notEqual(valueAt(whole, path), undefined, `config.sample.yaml says nothing of ${path}`);
  });

  it('takes relative paths from the folder of the file', () => {
    const config = readConfig('data_dir: here\ntls: { certificate: c.pem, key: /k.pem }', '/etc/trellis');
    assert.equal(config.data_dir, '/etc/trellis/here');
    assert.equal(config.tls?.certificate, '/etc/trellis/c.pem');
    assert.equal(config.tls?.key, '/k.pem');
  });

  it('is shown without its secrets', () => {
    const text = `
database:
  url: "postgres://trellis:secret1@db.example.org:5432,db2.example.org/trellis"
  replicas: ["postgres://trellis:secret12@db2.example.org/trellis", "postgres://db3.example.org/?password=secret13"]
registration: { shared_secret: secret2 }
email: { from: a@example.org, smtp: { host: mail.example.org, username: u, password: secret3 } }
sms: { url: "https://sms.example.org/?key=secret4", headers: { a: secret5 }, body: { key: secret6 } }
media: { s3: { endpoint: "https://s3.example.org", bucket: b, access_key: id, secret_key: secret7 } }
turn: { uris: ["turn:turn.example.org"], shared_secret: secret8 }
redis: { url: "redis://u:secret9@redis.example.org", password: secret10 }
cluster: { secret: secret11-long-enough }`;
    const shown = showConfig(readConfig(text, '/'));
    assert.doesNotMatch(shown, /secret\d/);
    const { database, media } = JSON.parse(shown);
    assert.equal(database.url, 'postgres://trellis:(set)@db.example.org:5432,db2.example.org/trellis');
    assert.equal(database.replicas[1], 'postgres://db3.example.org/?password=(set)');
    assert.deepEqual([media.s3.access_key, media.s3.secret_key], ['id', '(set)']);
    assert.equal(JSON.parse(showConfig(readConfig('', '/'))).registration.shared_secret, undefined);
  });

  for (const [text, message] of [
    ['http: { port: none }', /http\.port: must be integer; for example: port: 8008/],
    ['http: { prot: 1 }', /http\.prot: there is no such option; known here: host, port, trust_proxy/],
    ['servername: x', /servername: there is no such option/],
    ['log: { level: loud }', /log\.level: must be one of trace, debug.*; for example: level: "info"/],
    ['tls: { certificate: a }', /tls: key is missing/],
    ['federation: { deny_servers: [1] }', /federation\.deny_servers\.0: must be string/],
    ['rooms: { default_version: "99" }', /rooms\.default_version: "99" is no room version/],
    ['rate_limits: { joins: { per_second: 0 } }', /rate_limits\.joins\.per_second: must be > 0/],
    ['registration: { require_email: true }', /require_email: without the section email/],
    ['media: { s3: { endpoint: "https://x" } }', /media\.s3: bucket, access_key, secret_key is missing/],
    [
      'media: { max_upload_bytes: 6000000000, s3: { endpoint: "https://x", bucket: b, access_key: i, secret_key: k } }',
      /media\.max_upload_bytes: S3 takes no more/,
    ],
    ['workers: many', /workers: must be a number from 1 to 256, or auto; for example: workers: 4$/],
    ['cluster: { roles: [cook] }', /cluster\.roles\.0: must be one of client, sync/],
    ['cluster: { roles: [client] }', /without the section redis nobody else could be sync, federation-in/],
    ['redis: { name: x }', /redis: one of url, sentinels and nodes is missing/],
    [
      'redis: { url: "redis://x" }',
      /one database: database\.url is missing[\s\S]*cluster\.secret is missing/,
    ],
    ['- a', /must be object/],
    ['a: [', /this is not YAML/],
  ] as const)
    it(`refuses ${text}`, () => {
      assert.throws(() => readConfig(text, '/'), { name: 'ConfigError', message });
    });
});

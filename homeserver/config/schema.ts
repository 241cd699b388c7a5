import { ROLES } from '@trellis/cluster/cluster.ts';
import { type Static, type TObject, type TProperties, Type } from 'typebox';

/** An object that knows all its options and may be left out. */
function section<P extends TProperties>(properties: P): TObject<P> {
  return Type.Object(properties, { additionalProperties: false, default: {} });
}

const text = (example: string, more: object = {}) =>
  Type.String({ minLength: 1, examples: [example], ...more });
const optional = (example: string, more: object = {}) => Type.Optional(text(example, more));
const flag = (value: boolean) => Type.Boolean({ default: value, examples: [value] });
const count = (value: number, more: object = {}) =>
  Type.Integer({ minimum: 0, default: value, examples: [value], ...more });
const texts = (value: string[], example: string) =>
  Type.Array(Type.String({ minLength: 1 }), { default: value, examples: [[example]] });
const limit = (example: number) => Type.Optional(Type.Integer({ minimum: 1, examples: [example] }));
const port = (value: number) =>
  Type.Integer({ minimum: 1, maximum: 65535, default: value, examples: [value] });
const rate = (perSecond: number, burst: number) =>
  Type.Object(
    {
      per_second: Type.Number({ exclusiveMinimum: 0, default: perSecond, examples: [perSecond] }),
      burst: Type.Integer({ minimum: 1, default: burst, examples: [burst] }),
    },
    { additionalProperties: false, default: {} },
  );

/** Where a Redis listens. */
const redisNode = Type.Object(
  { host: text('redis.example.org'), port: port(6379) },
  { additionalProperties: false },
);

const DATABASE_URL = '^postgres(ql)?://';

/** A document that who registers has to accept: its version, and by language its name and where it is. */
const policy = Type.Object(
  { version: text('1.2', { maxLength: 100 }) },
  {
    additionalProperties: Type.Object(
      { name: text('Terms of Service'), url: text('https://example.org/terms', { pattern: '^https?://' }) },
      { additionalProperties: false },
    ),
  },
);

/** Every option there is; config.sample.yaml explains them. A test holds the two together. */
export const configSchema = section({
  server_name: text('example.org', {
    default: 'localhost',
    pattern: '^[A-Za-z0-9.:\\[\\]-]+$',
    maxLength: 230,
  }),
  data_dir: text('data', { default: 'data' }),
  signing_key: optional('signing.key'),
  workers: Type.Union([Type.Integer({ minimum: 1, maximum: 256 }), Type.Literal('auto')], {
    default: 1,
    examples: [4],
    description: 'a number from 1 to 256, or auto',
  }),
  public_url: optional('https://matrix.example.org', { pattern: '^https?://' }),
  well_known: section({
    server: optional('matrix.example.org:443'),
    client: Type.Optional(
      Type.Record(Type.String({ pattern: '\\.' }), Type.Any(), {
        examples: [{ 'org.example.setting': true }],
      }),
    ),
    support: Type.Optional(
      Type.Object(
        {
          contacts: Type.Optional(
            Type.Array(
              Type.Object(
                {
                  matrix_id: optional('@admin:example.org'),
                  email_address: optional('admin@example.org'),
                  role: text('m.role.admin'),
                },
                { additionalProperties: false },
              ),
              { minItems: 1, examples: [[{ matrix_id: '@admin:example.org', role: 'm.role.admin' }]] },
            ),
          ),
          support_page: optional('https://example.org/support', { pattern: '^https?://' }),
        },
        { additionalProperties: false, minProperties: 1 },
      ),
    ),
  }),
  http: section({
    host: text('127.0.0.1', { default: '127.0.0.1' }),
    port: port(8008),
    trust_proxy: flag(true),
  }),
  tls: Type.Optional(
    Type.Object(
      {
        host: text('0.0.0.0', { default: '0.0.0.0' }),
        port: port(8448),
        certificate: text('tls/fullchain.pem'),
        key: text('tls/privkey.pem'),
      },
      {
        additionalProperties: false,
        examples: [{ certificate: 'tls/fullchain.pem', key: 'tls/privkey.pem' }],
      },
    ),
  ),
  database: section({
    url: optional('postgres://trellis:secret@db.example.org/trellis', { pattern: DATABASE_URL }),
    connections: count(10, { minimum: 2, maximum: 500 }),
    prepared_statements: flag(true),
    replicas: Type.Array(
      text('postgres://trellis:secret@db2.example.org/trellis', { pattern: DATABASE_URL }),
      {
        maxItems: 16,
        default: [],
        examples: [['postgres://trellis:secret@db2.example.org/trellis']],
      },
    ),
  }),
  redis: Type.Optional(
    Type.Object(
      {
        url: optional('redis://redis.example.org:6379', { pattern: '^rediss?://' }),
        sentinels: Type.Optional(
          Type.Array(redisNode, { minItems: 1, examples: [[{ host: 'sentinel.example.org', port: 26379 }]] }),
        ),
        name: text('mymaster', { default: 'mymaster' }),
        nodes: Type.Optional(
          Type.Array(redisNode, { minItems: 1, examples: [[{ host: 'redis.example.org', port: 6379 }]] }),
        ),
        username: optional('trellis'),
        password: optional('a long random text'),
        tls: flag(false),
      },
      { additionalProperties: false, examples: [{ url: 'redis://redis.example.org:6379' }] },
    ),
  ),
  cluster: section({
    secret: optional('a long random text', { minLength: 16 }),
    roles: Type.Array(Type.Enum(ROLES), {
      minItems: 1,
      default: [...ROLES],
      examples: [['client', 'sync']],
    }),
    drain_ms: count(3000, { maximum: 600_000 }),
    fill: Type.Number({ minimum: 0, maximum: 1, default: 0.7 }),
  }),
  registration: section({
    open: flag(false),
    tokens: flag(true),
    guests: flag(false),
    shared_secret: optional('a long random text'),
    require_email: flag(false),
    require_phone: flag(false),
    terms: Type.Optional(
      Type.Record(Type.String({ pattern: '^[a-z0-9_]+$' }), policy, {
        examples: [{ terms_of_service: { version: '1.2', en: { name: 'Terms', url: 'https://a.example' } } }],
      }),
    ),
    recaptcha: Type.Optional(
      Type.Object(
        {
          public_key: text('6Lc_public'),
          private_key: text('a long random text'),
          verify_url: text('https://www.google.com/recaptcha/api/siteverify', {
            default: 'https://www.google.com/recaptcha/api/siteverify',
            pattern: '^https?://',
          }),
        },
        { additionalProperties: false, examples: [{ public_key: '6Lc_public', private_key: 'a text' }] },
      ),
    ),
  }),
  passwords: section({
    pepper_file: optional('pepper.txt'),
    memory_kib: count(19_456, { minimum: 64 }),
    passes: count(2, { minimum: 1 }),
    min_length: count(8),
  }),
  sessions: section({
    access_token_lifetime_ms: Type.Optional(Type.Integer({ minimum: 1000, examples: [86_400_000] })),
    refreshable_token_lifetime_ms: count(300_000, { minimum: 1000 }),
    refresh_token_lifetime_ms: Type.Optional(Type.Integer({ minimum: 1000, examples: [2_592_000_000] })),
  }),
  rooms: section({
    default_version: text('12', { default: '12' }),
    max_event_delay_ms: count(86_400_000),
    max_delayed_events: count(100, { maximum: 10_000 }),
    forget_on_leave: flag(false),
    keep_redacted_ms: count(0),
  }),
  limits: section({
    room_members: limit(5000),
    rooms_joined: limit(2000),
    rooms_created: limit(200),
    invites_per_day: limit(500),
    info_uri: optional('https://example.org/limits', { pattern: '^https?://' }),
  }),
  received_receipts: section({ by_default: flag(false) }),
  rendezvous: section({ enabled: flag(true) }),
  rtc: section({
    transports: Type.Array(Type.Object({ type: text('livekit') }, { additionalProperties: true }), {
      default: [],
      examples: [[{ type: 'livekit', livekit_service_url: 'https://rtc.example.org/livekit/jwt' }]],
    }),
  }),
  presence: section({ enabled: flag(true) }),
  push: section({
    allow_insecure: flag(false),
    deny_addresses: Type.Optional(Type.Array(Type.String(), { examples: [['10.0.0.0/8']] })),
    allow_addresses: texts([], '192.168.1.7/32'),
    badge: Type.Enum(['messages', 'rooms'], { default: 'messages', examples: ['messages'] }),
  }),
  email: Type.Optional(
    Type.Object(
      {
        from: text('Example <matrix@example.org>'),
        smtp: Type.Object(
          {
            host: text('mail.example.org'),
            port: port(587),
            security: Type.Enum(['starttls', 'tls', 'none'], { default: 'starttls', examples: ['starttls'] }),
            username: optional('matrix'),
            password: optional('a long random text'),
            verify_tls: flag(true),
          },
          { additionalProperties: false, examples: [{ host: 'mail.example.org' }] },
        ),
        notifications: flag(true),
        notification_delay_ms: count(600_000),
        client_url: text('https://app.element.io', {
          default: 'https://app.element.io',
          pattern: '^https?://',
        }),
      },
      { additionalProperties: false },
    ),
  ),
  sms: Type.Optional(
    Type.Object(
      {
        url: text('https://sms.example.org/send', { pattern: '^https?://' }),
        headers: Type.Record(Type.String(), Type.String(), {
          default: {},
          examples: [{ authorization: 'Bearer a-long-random-text' }],
        }),
        body: Type.Record(Type.String(), Type.Any(), {
          default: { to: '{number}', text: '{text}' },
          examples: [{ to: '{number}', text: '{text}' }],
        }),
        form: flag(false),
      },
      { additionalProperties: false, examples: [{ url: 'https://sms.example.org/send' }] },
    ),
  ),
  server_notices: section({
    localpart: text('_server', { default: '_server', pattern: '^_[a-z0-9._=/+-]*$', maxLength: 100 }),
    display_name: text('Server Notices', { default: 'Server Notices' }),
    room_name: text('Server Notices', { default: 'Server Notices' }),
  }),
  user_directory: section({ search_all_users: flag(false) }),
  media: section({
    max_upload_bytes: count(50 * 1024 * 1024),
    max_remote_bytes: count(50 * 1024 * 1024),
    max_remote_cache_bytes: count(20 * 1024 ** 3),
    max_user_bytes: Type.Optional(Type.Integer({ minimum: 0, examples: [10 * 1024 ** 3] })),
    local_lifetime_ms: Type.Optional(Type.Integer({ minimum: 86_400_000, examples: [31_536_000_000] })),
    remote_lifetime_ms: Type.Optional(Type.Integer({ minimum: 86_400_000, examples: [7_776_000_000] })),
    freeze_unauthenticated: flag(true),
    url_previews: flag(true),
    deny_preview_hosts: texts([], '*.internal.example.org'),
    preview_language: text('en, *;q=0.5', {
      default: 'en, *;q=0.5',
      pattern: '^[A-Za-z0-9*;=,. -]+$',
      maxLength: 200,
    }),
    s3: Type.Optional(
      Type.Object(
        {
          endpoint: text('https://s3.eu-central-1.amazonaws.com', { pattern: '^https?://[^/?#@]+[^?#]*$' }),
          region: text('eu-central-1', { default: 'us-east-1', pattern: '^[A-Za-z0-9-]+$' }),
          bucket: text('example-media', { pattern: '^[a-z0-9][a-z0-9.-]*$', maxLength: 63 }),
          access_key: text('AKIA...', { pattern: '^\\S+$' }),
          secret_key: text('a long random text'),
          prefix: optional('trellis/', { pattern: '^([A-Za-z0-9_-][A-Za-z0-9._-]*/)+$', maxLength: 200 }),
          path_style: flag(false),
        },
        { additionalProperties: false },
      ),
    ),
  }),
  rate_limits: section({
    enabled: flag(true),
    messages: rate(5, 20),
    joins: rate(1, 20),
    invites: rate(0.5, 20),
    room_creation: rate(0.2, 10),
    login: rate(0.2, 10),
    failed_login: rate(0.2, 10),
    registration: rate(0.2, 5),
    verification: rate(0.005, 5),
    other: rate(50, 200),
  }),
  federation: section({
    enabled: flag(true),
    allow_servers: Type.Optional(texts([], '*.example.org')),
    deny_servers: texts([], 'spam.example.org'),
    ca_file: optional('tls/ca.pem'),
    verify_tls: flag(true),
    deny_addresses: Type.Optional(Type.Array(Type.String(), { examples: [['10.0.0.0/8']] })),
    allow_addresses: texts([], '192.168.1.7/32'),
    trusted_key_servers: Type.Optional(
      Type.Array(
        Type.Object(
          {
            server_name: text('matrix.org'),
            verify_keys: Type.Optional(Type.Record(Type.String(), Type.String())),
          },
          { additionalProperties: false },
        ),
        { examples: [[{ server_name: 'matrix.org' }]] },
      ),
    ),
    distrusted_keys: texts([], 'l8Hft5qXKn1vfHrg3p4+W8gELQVo8N13JkluMfmn2sQ'),
  }),
  turn: Type.Optional(
    Type.Object(
      {
        uris: Type.Array(Type.String({ pattern: '^turns?:' }), {
          examples: [['turn:turn.example.org?transport=udp']],
        }),
        shared_secret: text('a long random text'),
        lifetime_ms: count(86_400_000),
      },
      { additionalProperties: false },
    ),
  ),
  application_services: texts([], 'bridge.yaml'),
  memory: section({
    event_cache_mb: count(64, { minimum: 1 }),
  }),
  log: section({
    level: Type.Enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], {
      default: 'info',
      examples: ['info'],
    }),
  }),
});

export type Config = Static<typeof configSchema>;

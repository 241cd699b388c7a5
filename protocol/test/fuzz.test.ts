import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { authoriseByAuthEvents } from '../auth-rules/index.ts';
import { canonicalJson } from '../canonical-json.ts';
import { MatrixError } from '../errors.ts';
import type { JsonObject, JsonValue } from '../event.ts';
import { checkPdu } from '../event-format.ts';
import { matchesEventFilter, parseFilter } from '../filters.ts';
import { compileGlob } from '../glob.ts';
import * as identifiers from '../identifiers.ts';
import { parseJson } from '../json.ts';
import { checkContentHash, makeEvent, signingServers } from '../make-event.ts';
import {
  changesFromJson,
  changesToJson,
  compileRules,
  evaluate,
  flattenEvent,
  NO_CHANGES,
  putRule,
  RULE_KINDS,
} from '../push-rules/index.ts';
import { redact } from '../redaction.ts';
import { knownRoomVersions } from '../room-versions.ts';
import { jsonObject, jsonValue, key, serverName } from './arbitraries.ts';
import { mangled, timed, withinBudget } from './fuzzing.ts';

const versions = fc.constantFrom(...knownRoomVersions());

/** Runs what may refuse its input, but only so. */
function refusable<T>(run: () => T): T | undefined {
  try {
    return timed(run);
  } catch (error) {
    assert.ok(error instanceof MatrixError, `${error instanceof Error ? error.stack : error}`);
    assert.ok(error.status >= 400 && error.status < 500);
    return undefined;
  }
}

const anything = fc.oneof(jsonValue, fc.constantFrom(null, true, 0, -1, 2 ** 53, 1e300, '', '\0', [], {}));

const pdu = fc
  .record(
    {
      type: fc.oneof(
        fc.constantFrom(
          'm.room.member',
          'm.room.create',
          'm.room.power_levels',
          'm.room.join_rules',
          'm.room.redaction',
          'm.room.third_party_invite',
          'm.room.aliases',
        ),
        anything,
      ),
      room_id: fc.oneof(fc.constantFrom('!r:x', `!${'a'.repeat(43)}`), anything),
      sender: fc.oneof(fc.constantFrom('@a:x', '@b:y'), anything),
      state_key: fc.oneof(fc.constantFrom('', '@a:x', '@b:y', 'x'), anything),
      content: fc.oneof(
        jsonObject,
        fc.record(
          {
            membership: fc.oneof(fc.constantFrom('join', 'invite', 'leave', 'ban', 'knock'), anything),
            third_party_invite: anything,
            join_authorised_via_users_server: fc.oneof(fc.constant('@a:x'), anything),
            users: fc.oneof(fc.dictionary(fc.constantFrom('@a:x', '@b:y', 'x'), anything), anything),
            events: fc.oneof(fc.dictionary(key, anything), anything),
            ban: anything,
            invite: anything,
            join_rule: anything,
            room_version: fc.oneof(fc.constantFrom('1', '11', '12'), anything),
            creator: anything,
            additional_creators: anything,
            redacts: anything,
          },
          { requiredKeys: [] },
        ),
        anything,
      ),
      prev_events: fc.oneof(
        fc.array(fc.oneof(fc.constantFrom('$a', '$b:x'), anything), { maxLength: 25 }),
        anything,
      ),
      auth_events: fc.oneof(
        fc.array(fc.oneof(fc.constantFrom('$a', '$b:x'), anything), { maxLength: 12 }),
        anything,
      ),
      depth: fc.oneof(fc.nat(), anything),
      origin_server_ts: fc.oneof(fc.nat(), anything),
      hashes: fc.oneof(fc.record({ sha256: fc.oneof(fc.base64String(), anything) }), anything),
      signatures: fc.oneof(fc.dictionary(key, fc.dictionary(key, anything)), fc.constant({}), anything),
      unsigned: fc.oneof(jsonObject, anything),
      redacts: fc.oneof(fc.constant('$a'), anything),
      event_id: fc.oneof(fc.constant('$a:x'), anything),
      msc4354_sticky: anything,
    },
    { requiredKeys: ['type', 'sender', 'content', 'depth', 'prev_events', 'auth_events'] },
  )
  .map((fields) => fields as JsonObject);

test('JSON in any state is read or refused', () => {
  fc.assert(
    fc.property(
      mangled(
        fc.oneof(
          jsonValue.map((value) => JSON.stringify(value)),
          fc.string(),
        ),
      ),
      (given) => {
        // As it comes from bytes: without halves of characters that nobody has escaped.
        const text = given.toWellFormed();
        for (const strict of [false, true]) {
          const value = refusable(() => parseJson(text, { strict }));
          if (value === undefined) continue;
          const canonical = refusable(() => canonicalJson(value, { lax: !strict }));
          // What was read strictly can be written, and is read as the same again.
          if (strict) assert.notEqual(canonical, undefined, text);
          if (canonical !== undefined)
            assert.equal(canonicalJson(parseJson(canonical), { lax: true }), canonical);
        }
      },
    ),
    withinBudget(),
  );
});

test('JSON of any depth and length is read or refused, and no stack overflows', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('[', '{"a":', '[{"":', '[[],'),
      fc.integer({ min: 1, max: 300_000 }),
      fc.boolean(),
      (open, times, closed) => {
        const close = open === '{"a":' ? '}' : open === '[{"":' ? '}]' : ']';
        const text = `${open.repeat(times)}1${closed ? close.repeat(times) : ''}`;
        refusable(() => parseJson(text, { strict: true }));
      },
    ),
    {
      ...withinBudget(0.5),
      examples: [
        ['[', 1_000_000, true],
        ['{"a":', 1_000_000, true],
      ],
    },
  );
});

test('a PDU of any form is an event that can be handled, or is refused', () => {
  fc.assert(
    fc.property(pdu, pdu, versions, fc.boolean(), (one, other, version, others) => {
      const events = [one, other].flatMap((given) => {
        refusable(() => redact(given, version));
        return (
          refusable(() => {
            checkPdu(given, version, { others });
            return makeEvent(given, version);
          }) ?? []
        );
      });
      for (const event of events) {
        timed(() => {
          checkContentHash(event);
          signingServers(event);
          const redacted = redact(event.pdu, version);
          if (version.eventIds !== 'server')
            assert.equal(makeEvent(redacted, version).eventId, event.eventId);
          for (const auth of [[], events, [event, event]])
            assert.ok(
              ['string', 'undefined'].includes(typeof authoriseByAuthEvents(event, auth, version, events[0])),
            );
        });
      }
    }),
    withinBudget(2),
  );
});

test('identifiers of any form are parsed or refused', () => {
  const id = fc
    .tuple(
      fc.constantFrom('@', '#', '!', '$', '+', 'mxc://', ''),
      fc.string(),
      fc.constantFrom(':', '/', ''),
      serverName,
    )
    .map((parts) => parts.join(''));
  fc.assert(
    fc.property(mangled(id), (text) => {
      timed(() => {
        const user = identifiers.parseUserId(text);
        if (user) assert.equal(`@${user.localpart}:${user.serverName}`, text);
        const alias = identifiers.parseRoomAlias(text);
        if (alias) assert.equal(`#${alias.localpart}:${alias.serverName}`, text);
        const mxc = identifiers.parseMxcUri(text);
        if (mxc) assert.ok(!/[/\\.]/.test(mxc.mediaId));
        for (const check of [identifiers.isRoomId, identifiers.isEventId, identifiers.isServerName])
          if (check(text)) assert.ok(!text.includes('\0') && text.isWellFormed());
        identifiers.serverNameOf(text);
        identifiers.isOpaqueId(text);
      });
    }),
    withinBudget(),
  );
});

test('filters of any form match events of any form, or are refused', () => {
  const parts = fc.record(
    {
      types: anything,
      not_types: fc.oneof(fc.array(fc.string()), anything),
      senders: fc.oneof(fc.array(fc.string()), anything),
      rooms: anything,
      contains_url: anything,
      limit: fc.oneof(fc.integer(), anything),
      related_by_rel_types: anything,
      lazy_load_members: anything,
      unread_thread_notifications: anything,
    },
    { requiredKeys: [] },
  );
  const filter = fc.oneof(
    fc.record(
      {
        room: fc.oneof(
          fc.record({ timeline: parts, state: parts, ephemeral: anything }, { requiredKeys: [] }),
          parts,
        ),
        presence: parts,
        account_data: parts,
        event_fields: fc.oneof(fc.array(fc.string()), anything),
        event_format: anything,
      },
      { requiredKeys: [] },
    ),
    anything,
  );
  fc.assert(
    fc.property(filter, fc.string(), jsonObject, (json, type, content) => {
      const parsed = refusable(() => parseFilter(json as JsonValue));
      const timeline = parsed?.room?.timeline;
      if (timeline) timed(() => matchesEventFilter(timeline, { type, sender: '@a:x', content } as never));
    }),
    withinBudget(),
  );
});

test('push rules of any form are refused, or are kept, read back and evaluated (CVE-2021-29471)', () => {
  const pattern = fc.oneof(
    fc.string(),
    fc.string({ unit: fc.constantFrom('*', '?', 'a', 'b', ' ') }),
    anything,
  );
  const conditions = fc.oneof(
    fc.array(
      fc.oneof(
        fc.record(
          {
            kind: fc.oneof(
              fc.constantFrom(
                'event_match',
                'event_property_is',
                'event_property_contains',
                'contains_display_name',
                'room_member_count',
                'sender_notification_permission',
              ),
              anything,
            ),
            key: fc.oneof(
              fc.constantFrom('content.body', 'type', 'content.m\\.x', 'room', '__proto__.a'),
              anything,
            ),
            pattern,
            value: anything,
            is: fc.oneof(fc.constantFrom('2', '>1', '<=3', '==', '>x'), anything),
          },
          { requiredKeys: [] },
        ),
        anything,
      ),
      { maxLength: 5 },
    ),
    anything,
  );
  fc.assert(
    fc.property(
      fc.constantFrom(...RULE_KINDS),
      fc.string(),
      conditions,
      pattern,
      anything,
      fc.tuple(fc.string({ unit: fc.constantFrom('a', 'b', ' '), maxLength: 3000 }), jsonObject),
      (kind, ruleId, given, of, actions, [body, more]) => {
        const rule = { conditions: given, pattern: of, actions } as JsonObject;
        for (const each of [rule, { ...rule, actions: ['notify'] }]) {
          const changes = refusable(() => putRule(NO_CHANGES, kind, ruleId, each as never, {}));
          if (!changes) continue;
          assert.equal(changesToJson(changesFromJson(changesToJson(changes))), changesToJson(changes));
          const event = {
            type: 'm.room.message',
            sender: '@b:x',
            roomId: '!r:x',
            content: { ...more, body },
          };
          timed(() => {
            const room = { memberCount: 3, senderPowerLevel: 0, notificationLevel: () => 50 };
            evaluate(compileRules(changes), flattenEvent(event as never, room), {
              userId: '@a:x',
              displayName: 'a',
            } as never);
          });
        }
      },
    ),
    withinBudget(),
  );
});

test('globs take no longer than the text and the pattern are long (CVE-2021-29471, CVE-2023-45129)', () => {
  const letters = fc.constantFrom('*', '?', 'a', 'b', '\u{1f4a5}', '.');
  fc.assert(
    fc.property(
      fc.string({ unit: letters, maxLength: 2000 }),
      fc.string({ unit: fc.constantFrom('a', 'b', '.', ' '), maxLength: 20_000 }),
      (pattern, text) => {
        timed(() => {
          const glob = compileGlob(pattern);
          glob.matches(text);
          glob.matchesWords(text);
        });
      },
    ),
    withinBudget(),
  );
});

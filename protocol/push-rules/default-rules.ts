import type { DefaultRule, Ruleset } from './rules.ts';

/**
 * The predefined rules (spec: "Predefined Rules"), most important first. `pattern_type` and `value_type` stand for
 * what differs between users, so that all users can share one compiled set.
 *
 * Besides those of the spec there are the rules for mentions by name that v1.17 removed: clients that send no
 * `m.mentions` still rely on them. And the rules for polls (MSC3930).
 */
const SOUND = { set_tweak: 'sound', value: 'default' } as const;
const HIGHLIGHT = { set_tweak: 'highlight' } as const;

const ofType = (pattern: string) => ({ kind: 'event_match', key: 'type', pattern }) as const;
const EMPTY_STATE_KEY = { kind: 'event_match', key: 'state_key', pattern: '' } as const;
const ONE_TO_ONE = { kind: 'room_member_count', is: '2' } as const;

/** Stands above all rules, those of the user included. */
export const MASTER_RULE: DefaultRule = {
  rule_id: '.m.rule.master',
  enabled: false,
  conditions: [],
  actions: [],
};

const override: DefaultRule[] = [
  {
    rule_id: '.m.rule.suppress_notices',
    conditions: [{ kind: 'event_match', key: 'content.msgtype', pattern: 'm.notice' }],
    actions: [],
  },
  {
    rule_id: '.m.rule.invite_for_me',
    conditions: [
      ofType('m.room.member'),
      { kind: 'event_match', key: 'content.membership', pattern: 'invite' },
      { kind: 'event_match', key: 'state_key', pattern_type: 'user_id' },
    ],
    actions: ['notify', SOUND],
  },
  { rule_id: '.m.rule.member_event', conditions: [ofType('m.room.member')], actions: [] },
  {
    rule_id: '.m.rule.is_user_mention',
    conditions: [
      { kind: 'event_property_contains', key: 'content.m\\.mentions.user_ids', value_type: 'user_id' },
    ],
    actions: ['notify', SOUND, HIGHLIGHT],
  },
  {
    rule_id: '.m.rule.contains_display_name',
    onlyWithoutMentions: true,
    conditions: [{ kind: 'contains_display_name' }],
    actions: ['notify', SOUND, HIGHLIGHT],
  },
  {
    rule_id: '.m.rule.is_room_mention',
    conditions: [
      { kind: 'event_property_is', key: 'content.m\\.mentions.room', value: true },
      { kind: 'sender_notification_permission', key: 'room' },
    ],
    actions: ['notify', HIGHLIGHT],
  },
  {
    rule_id: '.m.rule.roomnotif',
    onlyWithoutMentions: true,
    conditions: [
      { kind: 'event_match', key: 'content.body', pattern: '@room' },
      { kind: 'sender_notification_permission', key: 'room' },
    ],
    actions: ['notify', HIGHLIGHT],
  },
  {
    rule_id: '.m.rule.tombstone',
    conditions: [ofType('m.room.tombstone'), EMPTY_STATE_KEY],
    actions: ['notify', HIGHLIGHT],
  },
  { rule_id: '.m.rule.reaction', conditions: [ofType('m.reaction')], actions: [] },
  {
    rule_id: '.m.rule.room.server_acl',
    conditions: [ofType('m.room.server_acl'), EMPTY_STATE_KEY],
    actions: [],
  },
  {
    rule_id: '.m.rule.suppress_edits',
    conditions: [{ kind: 'event_property_is', key: 'content.m\\.relates_to.rel_type', value: 'm.replace' }],
    actions: [],
  },
  {
    rule_id: '.org.matrix.msc3930.rule.poll_response',
    conditions: [ofType('org.matrix.msc3381.poll.response')],
    actions: [],
  },
];

const content: DefaultRule[] = [
  {
    rule_id: '.m.rule.contains_user_name',
    onlyWithoutMentions: true,
    pattern_type: 'user_localpart',
    actions: ['notify', SOUND, HIGHLIGHT],
  },
];

const underride: DefaultRule[] = [
  {
    rule_id: '.m.rule.call',
    conditions: [ofType('m.call.invite')],
    actions: ['notify', { set_tweak: 'sound', value: 'ring' }],
  },
  {
    rule_id: '.m.rule.encrypted_room_one_to_one',
    conditions: [ONE_TO_ONE, ofType('m.room.encrypted')],
    actions: ['notify', SOUND],
  },
  {
    rule_id: '.m.rule.room_one_to_one',
    conditions: [ONE_TO_ONE, ofType('m.room.message')],
    actions: ['notify', SOUND],
  },
  { rule_id: '.m.rule.message', conditions: [ofType('m.room.message')], actions: ['notify'] },
  { rule_id: '.m.rule.encrypted', conditions: [ofType('m.room.encrypted')], actions: ['notify'] },
  {
    rule_id: '.org.matrix.msc3930.rule.poll_start_one_to_one',
    conditions: [ONE_TO_ONE, ofType('org.matrix.msc3381.poll.start')],
    actions: ['notify', SOUND],
  },
  {
    rule_id: '.org.matrix.msc3930.rule.poll_start',
    conditions: [ofType('org.matrix.msc3381.poll.start')],
    actions: ['notify'],
  },
  {
    rule_id: '.org.matrix.msc3930.rule.poll_end_one_to_one',
    conditions: [ONE_TO_ONE, ofType('org.matrix.msc3381.poll.end')],
    actions: ['notify', SOUND],
  },
  {
    rule_id: '.org.matrix.msc3930.rule.poll_end',
    conditions: [ofType('org.matrix.msc3381.poll.end')],
    actions: ['notify'],
  },
];

/** Threads that the user follows, and those that they do not (MSC4306). */
const postcontent: DefaultRule[] = [
  {
    rule_id: '.io.element.msc4306.rule.unsubscribed_thread',
    conditions: [{ kind: 'io.element.msc4306.thread_subscription', subscribed: false }],
    actions: [],
  },
  {
    rule_id: '.io.element.msc4306.rule.subscribed_thread',
    conditions: [{ kind: 'io.element.msc4306.thread_subscription', subscribed: true }],
    actions: ['notify', SOUND],
  },
];

/** Without the master rule, which goes before the user's own. */
export const DEFAULT_RULES: Ruleset<DefaultRule> = {
  override,
  content,
  postcontent,
  room: [],
  sender: [],
  underride,
};

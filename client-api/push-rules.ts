import { badJson, invalidParam, notFound } from '@trellis/protocol/errors.ts';
import type { JsonObject, JsonValue } from '@trellis/protocol/event.ts';
import {
  checkActions,
  deleteRule,
  isRuleKind,
  putRule,
  type RuleKind,
  ruleOf,
  setActions,
  setEnabled,
} from '@trellis/protocol/push-rules/index.ts';
import type { PushRules } from '@trellis/users/push-rules.ts';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Type } from 'typebox';
import { requesterOf } from './authentication.ts';

export interface PushRulesDeps {
  readonly pushRules: PushRules;
}

interface Params {
  kind: string;
  ruleId: string;
}
type RuleRequest = FastifyRequest<{ Params: Params }>;

const BASE = '/_matrix/client/v3/pushrules';
const RULE = `${BASE}/global/:kind/:ruleId`;

/** Members are checked by kind of rule, with error codes of their own. */
const ruleBody = Type.Record(Type.String(), Type.Any());
const placeQuery = Type.Object({
  before: Type.Optional(Type.String()),
  after: Type.Optional(Type.String()),
});
const enabledBody = Type.Object({ enabled: Type.Boolean() });

/** A user's push rules (spec: "Push Rules API"). */
export function pushRuleRoutes(app: FastifyInstance, { pushRules }: PushRulesDeps): void {
  for (const end of ['/', ''])
    app.get(`${BASE}${end}`, async (request) => ({
      global: await pushRules.ruleset(requesterOf(request).userId),
    }));

  for (const end of ['/', ''])
    app.get(`${BASE}/global${end}`, async (request) => pushRules.ruleset(requesterOf(request).userId));

  app.get<{ Params: Params }>(RULE, (request) => findRule(request));
  app.get<{ Params: Params }>(`${RULE}/enabled`, async (request) => ({
    enabled: (await findRule(request)).enabled,
  }));
  app.get<{ Params: Params }>(`${RULE}/actions`, async (request) => ({
    actions: (await findRule(request)).actions,
  }));

  app.put<{ Params: Params; Body: JsonObject; Querystring: { before?: string; after?: string } }>(
    RULE,
    { schema: { body: ruleBody, querystring: placeQuery } },
    async (request) => {
      const { kind, ruleId } = ruleToChange(request);
      const { body, query } = request;
      await pushRules.change(requesterOf(request).userId, (rules) =>
        putRule(rules, kind, ruleId, body, query),
      );
      return {};
    },
  );

  app.delete<{ Params: Params }>(RULE, async (request) => {
    const { kind, ruleId } = ruleToChange(request);
    if (ruleId.startsWith('.')) throw invalidParam('Predefined rules cannot be deleted');
    await pushRules.change(requesterOf(request).userId, (rules) => deleteRule(rules, kind, ruleId));
    return {};
  });

  app.put<{ Params: Params; Body: { enabled: boolean } }>(
    `${RULE}/enabled`,
    { schema: { body: enabledBody } },
    async (request) => {
      const { kind, ruleId } = ruleToChange(request);
      const { enabled } = request.body;
      await pushRules.change(requesterOf(request).userId, (rules) =>
        setEnabled(rules, kind, ruleId, enabled),
      );
      return {};
    },
  );

  app.put<{ Params: Params; Body: { actions?: JsonValue } | undefined }>(
    `${RULE}/actions`,
    async (request) => {
      const { kind, ruleId } = ruleToChange(request);
      if (typeof request.body !== 'object' || request.body === null)
        throw badJson('The body is not an object');
      const actions = checkActions(request.body.actions);
      await pushRules.change(requesterOf(request).userId, (rules) =>
        setActions(rules, kind, ruleId, actions),
      );
      return {};
    },
  );

  async function findRule(request: RuleRequest) {
    const { userId } = requesterOf(request);
    const { kind, ruleId } = request.params;
    if (!isRuleKind(kind)) throw notFound('The push rule was not found.');
    return ruleOf(userId, (await pushRules.of(userId)).changes, kind, ruleId);
  }
}

function ruleToChange({ params: { kind, ruleId } }: RuleRequest): { kind: RuleKind; ruleId: string } {
  if (!isRuleKind(kind)) throw invalidParam('There is no such kind of push rules');
  return { kind, ruleId };
}
